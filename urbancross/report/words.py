"""Numbers, settings and pictures as the page writes them."""

import base64
import io
import json
import math
from numbers import Real
from typing import Any

from PIL import Image, UnidentifiedImageError

THUMBNAIL_PX, THUMBNAIL_BYTES = 224, 32_000  # a picture past either is shrunk: a page holds hundreds


def percent(share: Any) -> str:
    """0.1234 -> 12.3 %."""
    value = real(share)
    return "–" if math.isnan(value) else f"{100 * value:.1f}\u00a0%"


def interval(ends: Any) -> str:
    """(0.1, 0.2) -> [10.0, 20.0]; nothing -> nothing."""
    return f"[{100 * ends[0]:.1f},\u00a0{100 * ends[1]:.1f}]" if ends else ""


def number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def plain(value: Any) -> str:
    """A setting as a person would type it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def data_uri(picture: bytes, side_px: int = THUMBNAIL_PX, most_bytes: int = THUMBNAIL_BYTES) -> str:
    """A picture as the text of a `src`; a large one shrunk, one that cannot be read as an empty text."""
    try:
        with Image.open(io.BytesIO(picture)) as image:
            kind = Image.MIME[image.format or ""]
            if max(image.size) > side_px or len(picture) > most_bytes:
                small = image.convert("RGB")
                small.thumbnail((side_px, side_px))
                file = io.BytesIO()
                small.save(file, "JPEG", quality=82)
                kind, picture = "image/jpeg", file.getvalue()
    except (UnidentifiedImageError, OSError):
        return ""
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def with_interval(metrics: dict[str, Any]) -> str:
    return f"{percent(metrics['mR'])} {interval(metrics.get('ci95', {}).get('mR'))}".strip()


def real(value: Any) -> float:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
