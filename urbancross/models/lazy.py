"""Modules that are imported when something of theirs is asked for.

open_clip and what it brings along take ten seconds of a core, torch two; most processes of a run never build a model.
"""

import importlib
from typing import Any


class Lazy:
    """Stands for a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


open_clip, timm, torch, transformers = (Lazy(name) for name in ("open_clip", "timm", "torch", "transformers"))
