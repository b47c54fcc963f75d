"""Where objects lie: each store offers the same functions."""

from pathlib import Path
from types import ModuleType

from urbancross.stores import local, s3
from urbancross.stores.s3 import S3Path

Place = Path | S3Path


def store_of(place: Place) -> ModuleType:
    return s3 if isinstance(place, S3Path) else local
