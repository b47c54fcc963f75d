"""The page of `serve` as one file: styles, scripts and data within, and nothing that it could load."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

STATIC = resources.files("urbancross") / "serve" / "static"
OWN = resources.files("urbancross.report") / "templates"
REPLACED = ("remote.js", "start.js")  # where answers come from over HTTP; and here:
LOCAL = ("phrases.js", "filters.js", "local.js", "start_local.js")


def page(data: Mapping[str, Any]) -> str:
    """The whole file.

    Args:
        data: what becomes JSON, by the id of the element that holds it.
    """
    html = (STATIC / "index.html").read_text()
    hashes: dict[str, list[str]] = {"script": [], "style": []}

    def inline(tag: str, text: str) -> str:
        if f"</{tag}" in text.lower():
            raise ValueError(f"</{tag} within: it cannot lie in a page")
        hashes[tag].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
        return f"<{tag}>{text}</{tag}>"

    def script(found: re.Match[str]) -> str:
        return "" if found[1] in REPLACED else inline("script", (STATIC / found[1]).read_text())

    html = re.sub(
        r'<link rel="stylesheet" href="static/([^"]+)">', lambda at: inline("style", (STATIC / at[1]).read_text()), html
    )
    html = re.sub(r'<script src="static/([^"]+)"></script>', script, html)
    local = [inline("script", (OWN / name).read_text()) for name in LOCAL]
    held = [f'<script type="application/json" id="{name}">{as_json(value)}</script>' for name, value in data.items()]
    policy = (
        f"default-src 'none'; img-src data: blob:; script-src {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; base-uri 'none'; form-action 'none'"
    )
    html = html.replace("<title>", f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>', 1)
    return html.replace("</body>", "\n".join([*held, *local, "</body>"]), 1)


def as_json(value: Any) -> str:
    """JSON that ends no element and begins no comment, whatever texts are in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def packed(array: np.ndarray) -> str:
    """The bytes of an array, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def column(values: Sequence[Any]) -> dict[str, Any]:
    """Values of which many are alike: each once, and which of them a row has, counted from 1; 0 for None."""
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    place = {None: 0, **{value: i for i, value in enumerate(distinct, start=1)}}
    return {"values": distinct, **numbers([place[value] for value in values], len(distinct))}


def lists(values: Sequence[Sequence[str]], first: Sequence[str] = ()) -> dict[str, Any]:
    """Lists of values of which many are alike; `first` are the first among the distinct ones."""
    distinct = list(dict.fromkeys([*first, *(value for row in values for value in row)]))
    place = {value: i for i, value in enumerate(distinct)}
    flat = [place[value] for row in values for value in row]
    counts = [len(row) for row in values]
    return {"values": distinct, **numbers(flat, len(distinct)), "counts": numbers(counts, max(counts, default=0))}


def numbers(values: Sequence[int], largest: int) -> dict[str, Any]:
    """Whole numbers from 0 in as few bytes as the largest wants."""
    bits = next(bits for bits in (8, 16, 32) if largest < 1 << bits)
    return {"bits": bits, "at": packed(np.array(values, np.dtype(f"uint{bits}")))}
