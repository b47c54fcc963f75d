"""Debian's chromium, driven; a page that a test looks at ends clean: no error, nothing asked of any other machine."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from rasterio.warp import transform as warp_points

CHROMIUM = Path("/usr/bin/chromium")
OWN = ("http://127.0.0.1:", "data:", "blob:")  # what a page may ask for
ON_TURNED = "20.121,60.0,20.128,60.006"  # a box that meets no other tile of `served`
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


def lies_as_its_scene(page: Page) -> None:
    """The picture of the turned tile, found alone: its corners are where they should be, its red quarter the first."""
    outline = page.locator("#map path.found:not([d='M0 0'])")
    expect(outline).to_have_count(1)
    before = outline.get_attribute("d") or ""
    page.locator("#map .leaflet-control-zoom-out").click()  # all of it
    expect(outline).not_to_have_attribute("d", before)
    expect(page.locator(".leaflet-zoom-anim")).to_have_count(0)
    image = page.locator("#map img.on-map")
    expect(image).to_have_js_property("complete", True)
    devtools = page.context.new_cdp_session(page)
    root = devtools.send("DOM.getDocument")["root"]["nodeId"]
    node = devtools.send("DOM.querySelector", {"nodeId": root, "selector": "#map img.on-map"})["nodeId"]
    seen = np.array(devtools.send("DOM.getContentQuads", {"nodeId": node})["quads"]).reshape(4, 2)
    lon, lat = served.ends_of_turned().T
    wanted = np.column_stack(warp_points("EPSG:4326", "EPSG:3857", lon, lat)) * (1, -1)
    np.testing.assert_allclose(_of_length_one(seen), _of_length_one(wanted), atol=0.01)
    box = outline.bounding_box()
    assert box is not None
    np.testing.assert_allclose(seen.min(axis=0), [box["x"], box["y"]], atol=4)  # its line has a width
    np.testing.assert_allclose(seen.max(axis=0), [box["x"] + box["width"], box["y"] + box["height"]], atol=4)
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    reds = []
    for x, y in 0.5 * seen + 0.5 * seen.mean(axis=0):  # the middle of each quarter
        red, green, blue = shot[round(y), round(x)]
        reds.append(bool(red > 200 and green < 60 and blue < 60))
    assert reds == [True, False, False, False]


def lies_together(page: Page) -> None:
    """Hits on both sides of 180 degrees are shown within one view, a degree wide, which can be asked about."""
    expect(page.locator("#map .degrees.lon", has_text="°E")).not_to_have_count(0)
    expect(page.locator("#map .degrees.lon", has_text="°W")).not_to_have_count(0)
    page.locator("#view").click()
    expect(page.locator("#chips")).to_contain_text("within the box")
    settled(page)
    west, _, east, _ = asked_box(page)
    assert west > east
    assert east + 360 - west < 3
    assert len(numbers(page)) >= 40


def _of_length_one(points: np.ndarray) -> np.ndarray:
    points = points - points.mean(axis=0)
    return points / np.linalg.norm(points)
