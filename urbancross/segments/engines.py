"""The segmenters by name. A further one is a file beside `sam.py` with a `MaskMaker`, and a line here."""

from collections.abc import Callable

from urbancross.segments.masks import FelzenszwalbMasks, GridMasks, MaskMaker

ENGINES: dict[str, Callable[..., MaskMaker]] = {"felzenszwalb": FelzenszwalbMasks, "grid": GridMasks}
