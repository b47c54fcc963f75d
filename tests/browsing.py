"""Debian's chromium, driven; a page that a test looks at ends clean: no error, nothing asked of any other machine."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
OWN = ("http://127.0.0.1:", "data:", "blob:")  # what a page may ask for
MARK = "window.harmed = true"  # what hostile texts would do
HOSTILE = (
    f"<img src=x onerror='{MARK}'>",
    f"</script><script>{MARK}</script>",
    f"<svg onload='{MARK}'> & \"quotes\" `ticks` <!-- ",
)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing; install it: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def looking(
    browser: Browser, *, expected: tuple[str, ...] = (), own: tuple[str, ...] = OWN, **context: Any
) -> Iterator[Page]:
    """A page of its own.

    Args:
        expected: parts of errors that the test is about.
        own: how addresses begin that it may ask for.
    """
    opened = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | context)
    opened.set_default_timeout(30_000)
    page = opened.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    assert page.evaluate("window.harmed") is None
    assert [line for line in wrong if not any(part in line for part in expected)] == []
    assert [url for url in asked if not url.startswith(own)] == []
    opened.close()


def settled(page: Page) -> None:
    """Wait until answers are there."""
    expect(page.locator("#found:not([aria-busy])")).to_be_attached()


def reloaded(page: Page) -> None:
    """Open the address anew, and wait for its answers."""
    page.reload()
    expect(page.locator(".hit").first).to_be_visible()
    settled(page)


def search(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.locator("#text").press("Enter")
    expect(page.locator("#status")).to_contain_text("tile")
    settled(page)


def numbers(page: Page, column: int = 0) -> list[int]:
    """The tiles that a column shows, in order."""
    return [int(card.get_attribute("data-number") or -1) for card in page.locator(f".of-{column} .hit").all()]


def chips(page: Page) -> list[str]:
    return page.locator("#chips .chip span:first-of-type").all_text_contents()


def draw_box(page: Page, to: tuple[float, float]) -> None:
    """Pull a box over the map, from near its upper left to a share of its width and height."""
    page.keyboard.press("b")
    frame = page.locator("#map").bounding_box()
    assert frame is not None
    page.mouse.move(frame["x"] + 3, frame["y"] + 3)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] * to[0] / 2, frame["y"] + frame["height"] * to[1] / 2)
    page.mouse.move(frame["x"] + frame["width"] * to[0], frame["y"] + frame["height"] * to[1])
    page.mouse.up()
    expect(page.locator("#chips")).to_contain_text("within the box")
    settled(page)


def asked_box(page: Page) -> list[float]:
    """The box in the address."""
    told = page.evaluate("new URLSearchParams(location.hash.slice(1)).get('bbox')")
    return [float(part) for part in told.split(",")]


def is_too_wide(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
