"""The segmenters by name. A further one is a file beside `sam.py` with a `MaskMaker`, and a line here."""

from collections.abc import Callable
from typing import Any

from urbancross.segments.masks import FelzenszwalbMasks, GridMasks, MaskMaker


def _sam(*args: Any, **kwargs: Any) -> MaskMaker:
    from urbancross.segments.sam import SamMasks  # with torch, which the others do without

    return SamMasks(*args, **kwargs)


ENGINES: dict[str, Callable[..., MaskMaker]] = {"felzenszwalb": FelzenszwalbMasks, "grid": GridMasks, "sam": _sam}
