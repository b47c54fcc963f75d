"""A scene open in rasterio: a file here, one elsewhere, or a file for each of red, green and blue.

What is not a plain file here is handed to GDAL through Python, so that GDAL asks no server by itself: it would keep a
failed answer for good, and tell signed URLs in its errors.
"""

import atexit
import io
import itertools
import os
import re
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

import rasterio
from rasterio.abc import MultiByteRangeResourceContainer
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError
from rasterio.session import DummySession

from urbancross.errors import TileError
from urbancross.hrefs import is_remote
from urbancross.scenes.remote import Patience, Web

BLOCK_BYTES = 16 << 10  # of small reads, such as of a header's tables, each of which GDAL asks for by itself
BLOCKS = 256  # kept of a file
BETWEEN = "\n"  # hrefs of a scene whose red, green and blue are files of their own
GDAL_TYPES = {"uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32",
              "int32": "Int32", "float32": "Float32", "float64": "Float64"}  # fmt: skip
os.environ.setdefault("GDAL_CACHEMAX", "128")  # MB of decoded blocks in a process; GDAL's own is 5 % of all memory
NUMBERS = itertools.count()
OPEN: "weakref.WeakSet[Raster]" = weakref.WeakSet()


def files_of(source: str) -> list[str]:
    return source.split(BETWEEN)


def is_plain(source: str) -> bool:
    return not is_remote(source) and BETWEEN not in source


def version_of(source: str, web: Web, patience: Patience) -> str | None:
    """Size and mark of remote files, by their servers, and of local ones beside them.

    Raises:
        TileError: a server does not tell.
    """
    told = []
    for href in files_of(source):
        if is_remote(href):
            head = web.head(href, patience)
            told.append(f"{head.size}-{head.version}" if head.version else None)
        else:
            found = os.stat(href)
            told.append(f"{found.st_size}-{int(found.st_mtime)}")
    return " ".join(each for each in told if each) if all(told) else None


@dataclass(frozen=True)
class Scene:
    """One scene of a source.

    Attributes:
        name: what its tiles' ids begin with.
        source: a path or href; three with `BETWEEN` between them are red, green and blue.
        datetime: ISO 8601, where the source says it; else its file may.
        problem: why it cannot be used, known without looking.
    """

    name: str
    source: str
    datetime: str | None = None
    problem: str | None = None

    @property
    def is_remote(self) -> bool:
        return any(map(is_remote, files_of(self.source)))


@dataclass(frozen=True, eq=False)
class Raster:
    """A dataset of rasterio's, and why a file under it could not be read, once it could not."""

    dataset: Any
    files: "Files | None" = None

    def __post_init__(self) -> None:
        if self.files is not None:
            OPEN.add(self)

    def check(self) -> None:
        """
        Raises:
            TileError: what was read of it since it was opened may not be the file's.
        """
        if self.files is not None and self.files.problem is not None:
            raise self.files.problem

    def close(self) -> None:
        self.dataset.close()


@atexit.register
def close_all() -> None:
    """What is read through Python has to be closed while there is Python: GDAL would call it later, and crash."""
    for raster in list(OPEN):
        raster.close()


def opened(source: str, web: Web, patience: Patience, **options: Any) -> Raster:
    """
    Raises:
        TileError: a file cannot be read, or files do not fit together.
        RasterioError: a file is no raster.
    """
    if is_plain(source):
        return Raster(rasterio.open(source, **options))
    files = Files(files_of(source), web, patience)
    try:
        if len(files.paths) == 1:
            return Raster(files.open_in_gdal(files.paths[0], **options), files)
        files.bands = _bands(files).encode()
        return Raster(files.open_in_gdal("bands.vrt", **options), files)
    except Exception as error:
        if files.problem is not None:
            raise files.problem from None
        if isinstance(error, RasterioIOError):
            raise RasterioIOError(files.by_their_hrefs(str(error))) from None
        raise


@MultiByteRangeResourceContainer.register
class Files:
    """What GDAL sees of a scene: its files under short names, in a folder of its own, and nothing beside them."""

    def __init__(self, hrefs: list[str], web: Web, patience: Patience) -> None:
        self.hrefs, self.web, self.patience = hrefs, web, patience
        self.folder = f"scene://{os.getpid()}-{next(NUMBERS)}"
        self.paths = [f"{n}{PurePosixPath(urlsplit(href).path).suffix}" for n, href in enumerate(hrefs, start=1)]
        self.bands = b""
        self.problem: TileError | None = None

    def open_in_gdal(self, name: str, **options: Any) -> Any:
        with rasterio.Env(DummySession(), GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            return rasterio.open(f"{self.folder}/{name}", opener=self, **options)

    def open(self, path: str, mode: str = "rb", **_: Any) -> "Ranges":
        name = path.rpartition("/")[2]
        if name == "bands.vrt":
            return Ranges(self, None, len(self.bands))
        if name not in self.paths:
            raise FileNotFoundError(path)
        href = self.hrefs[self.paths.index(name)]
        return Ranges(self, href, *self._head(href))

    def _head(self, href: str) -> tuple[int, bytes]:
        """Size and first bytes."""
        if self.problem is not None:  # GDAL asks for the same file by several ways
            raise FileNotFoundError(href)
        try:
            if not is_remote(href):
                return os.stat(href).st_size, b""
            head = self.web.head(href, self.patience)
            return head.size, head.data
        except TileError as problem:
            self.problem = problem
        except OSError as error:
            self.problem = TileError(f"{href}: {error.strerror}")
        raise FileNotFoundError(href)

    def by_their_hrefs(self, text: str) -> str:
        for path, href in zip(self.paths, self.hrefs, strict=True):
            seen = re.search(rf"/vsiriopener_\w+/{re.escape(self.folder)}/{re.escape(path)}", text)
            text = text.replace(seen[0], href) if seen else text
        return text

    def isfile(self, path: str) -> bool:
        return path.rpartition("/")[2] in [*self.paths, "bands.vrt"]

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def size(self, path: str) -> int:
        return self.open(path).end

    def get_byte_ranges(self, path: str, offsets: list[int], sizes: list[int]) -> list[bytes]:
        return self.open(path).get_byte_ranges(offsets, sizes)

    def read(self, href: str | None, wanted: list[tuple[int, int]]) -> list[bytes]:
        """Ranges of a file; empty ones, and `problem`, where they could not be had: GDAL takes no exception."""
        if self.problem is None:
            try:
                if href is None:
                    return [self.bands[start:stop] for start, stop in wanted]
                if is_remote(href):
                    return self.web.ranges(href, wanted, self.patience)
                with open(href, "rb") as file:
                    return [os.pread(file.fileno(), stop - start, start) for start, stop in wanted]
            except TileError as problem:
                self.problem = problem
            except OSError as error:
                self.problem = TileError(f"{href}: {error.strerror}")
            except Exception as error:  # one that left here would stay in GDAL, and come up anywhere
                self.problem = TileError(f"cannot be read: {type(error).__name__}")
        return [b""] * len(wanted)


class Ranges(io.RawIOBase):
    """One of the files, open."""

    def __init__(self, files: Files, href: str | None, end: int, head: bytes = b"") -> None:
        self.files, self.href, self.end, self.at = files, href, end, 0
        self.blocks = OrderedDict((n, head[n : n + BLOCK_BYTES]) for n in range(0, len(head), BLOCK_BYTES))

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.end}[whence]
        return self.at

    def read(self, size: int = -1) -> bytes:
        stop = self.end if size < 0 else min(self.at + size, self.end)
        if stop <= self.at:
            return b""
        [found] = self._read([(self.at, stop)])
        self.at += len(found)
        return found

    def get_byte_ranges(self, offsets: list[int], sizes: list[int]) -> list[bytes]:
        found = self._read([(at, min(at + size, self.end)) for at, size in zip(offsets, sizes, strict=True)])
        # GDAL copies as many bytes as it asked for, whatever comes
        return [data.ljust(size, b"\0") for data, size in zip(found, sizes, strict=True)]

    def _read(self, wanted: list[tuple[int, int]]) -> list[bytes]:
        """Small ranges by whole blocks, which the next ones find here; large ones as they are."""
        blocks = {n: self.blocks[n] for start, stop in wanted for n in _blocks(start, stop) if n in self.blocks}
        here = [all(n in blocks for n in _blocks(start, stop)) for start, stop in wanted]
        asked = list[tuple[int, int]]()
        for (start, stop), found in zip(wanted, here, strict=True):
            if not found and stop - start < BLOCK_BYTES:
                start, stop = start // BLOCK_BYTES * BLOCK_BYTES, min(_blocks(start, stop)[-1] + BLOCK_BYTES, self.end)
            if not found:
                asked.append((start, stop))
        asked = list(dict.fromkeys(asked))
        came = dict(zip(asked, self.files.read(self.href, asked), strict=True)) if asked else {}
        for (first, last), data in came.items():
            if last - first <= 2 * BLOCK_BYTES and first % BLOCK_BYTES == 0 and data:
                blocks |= {n: data[n - first : n - first + BLOCK_BYTES] for n in _blocks(first, last)}
        self.blocks |= {n: block for n, block in blocks.items() if len(block) == min(BLOCK_BYTES, self.end - n)}
        while len(self.blocks) > BLOCKS:
            self.blocks.popitem(last=False)
        return [came.get(each) or _cut(blocks, *each) for each in wanted]


def _blocks(start: int, stop: int) -> range:
    return range(start // BLOCK_BYTES * BLOCK_BYTES, max(stop, start + 1), BLOCK_BYTES)


def _cut(blocks: dict[int, bytes], start: int, stop: int) -> bytes:
    numbers = _blocks(start, stop)
    if any(n not in blocks for n in numbers):
        return b""  # it could not be had
    return b"".join(blocks[n] for n in numbers)[start - numbers[0] : stop - numbers[0]]


def _bands(files: Files) -> str:
    """A virtual raster of three files of one band, which have to lie on one grid.

    Raises:
        TileError: they do not.
    """
    parts, first = [], None
    for number, name in enumerate(files.paths, start=1):
        with files.open_in_gdal(name) as raster:
            grid = (raster.width, raster.height, raster.crs, raster.transform)
            kind = raster.dtypes[0]
            if raster.count != 1 or kind not in GDAL_TYPES:
                raise TileError(f"{files.hrefs[number - 1]} has {raster.count} bands of {kind}, one of numbers wanted")
            if first is not None and grid != first:
                raise TileError(
                    f"its assets lie on other grids, {first[0]} x {first[1]} and {grid[0]} x {grid[1]} px; "
                    "give --asset others of one size and place"
                )
            first = grid
            nodata = "" if raster.nodata is None else f"<NoDataValue>{raster.nodata!r}</NoDataValue>"
            colour = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)[number - 1].name.capitalize()
            parts.append(
                f'<VRTRasterBand dataType="{GDAL_TYPES[kind]}" band="{number}">{nodata}'
                f"<ColorInterp>{colour}</ColorInterp><SimpleSource>"
                f'<SourceFilename relativeToVRT="1">{escape(name)}</SourceFilename><SourceBand>1</SourceBand>'
                "</SimpleSource></VRTRasterBand>"
            )
    assert first is not None
    width, height, crs, transform = first
    srs = "" if crs is None else f"<SRS>{escape(crs.to_wkt())}</SRS>"
    place = ", ".join(repr(value) for value in transform.to_gdal())
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{srs}<GeoTransform>{place}</GeoTransform>'
        f"{''.join(parts)}</VRTDataset>"
    )
