"""What a source holds, as rows of the plan: captioned sets in three dialects, WebDataset tars, GeoTIFFs and STAC."""

import csv
import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from urbancross import stac, storage, webdataset
from urbancross.errors import ConfigError, TileError, TileSkipped
from urbancross.globe import are_bounds
from urbancross.scenes import rasters
from urbancross.scenes.rasters import Scene
from urbancross.scenes.remote import Access, Patience, web_of
from urbancross.scenes.tiling import Reader, Tiling
from urbancross.splits import Shares, assign
from urbancross.stac import Asked

SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test", "restval": "train"}
KNOWN = (
    "a folder with captions.jsonl, an RSICD/RSITMD .json, a SkyScript .csv, WebDataset tars (a folder, one .tar, or "
    "set-{00000..00012}.tar), a folder of GeoTIFF scenes (*.tif), STAC (.json, stac-geoparquet .parquet), or the "
    "https:// URL of a STAC API"
)
OPENED_AT_ONCE = 16  # remote scenes whose headers are read while planning

EVERYTHING = Asked()

Row = dict[str, Any]


def plan(
    source: str,
    images: str | None,
    domain: str,
    tiling: Tiling,
    shares: Shares,
    known: dict[str, str] | None = None,
    asked: Asked = EVERYTHING,
) -> list[Row]:
    """Rows of `schemas.PLAN` for everything the source holds.

    Args:
        known: splits of tiles that were planned before, by id.
        asked: which items of a STAC source.

    Raises:
        ConfigError: nothing there, an unknown kind of source, a caption file that cannot be read, or no usable image.
    """
    if shares.valid + shares.test >= 1:
        raise ConfigError(
            f"--valid-share {shares.valid} and --test-share {shares.test} leave nothing to train on; lower them"
        )
    if not _is_text(domain):
        raise ConfigError(f"--domain {_printable(domain)}: not UTF-8; give another name")
    items = stac.scenes(source, asked)  # None: another kind of source
    path = Path() if items is not None else storage.local(source)
    captioned = (path / "captions.jsonl").is_file()
    tars = None if captioned or items is not None else webdataset.tars(source, path)
    if tars is None and not path.exists():
        raise ConfigError(f"--source {source}: no such file or folder; give {KNOWN}")
    if items is None and asked.flags:
        raise ConfigError(f"{asked.flags[0]} is for STAC, which --source {source} is not; leave it out")
    if items is not None:
        rows, place = _planned(items, source, domain, tiling), "place"
    elif tars is not None:
        rows, place = _samples(source, tars, domain), "place"
    elif path.is_dir() and not captioned:
        rows, place = _planned(_scenes(path), source, domain, tiling), "place"
    else:
        rows, place = _captioned(path / "captions.jsonl" if path.is_dir() else path, images, domain), "tile_id"
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        first = seen.setdefault(row["tile_id"], number)
        if first != number and place == "place":
            raise ConfigError(
                f"--source {source}: {rows[first - 1]['source']} and {row['source']} would both be {row['tile_id']}; "
                "rename one of them"
            )
        if first != number:
            raise ConfigError(
                f"--source {source}: {row['tile_id']} stands in entries {first} and {number}; "
                "give one entry per image, with all its captions"
            )
    assign(rows, shares, known or {}, Reader(tiling).read)
    versions: dict[str, str | None] = {}  # a scene has many tiles
    for row in rows:
        if row["source"] not in versions and "source_version" not in row:
            versions[row["source"]] = version_of(row["source"], tiling.access)
        row.setdefault("source_version", versions.get(row["source"]))
        row.pop("place", None)
    return rows


def _captioned(file: Path, images: str | None, domain: str) -> list[Row]:
    dialects: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl, ".json": _karpathy, ".csv": _skyscript}
    if file.suffix not in dialects:
        raise ConfigError(f"--source {file}: unknown kind {file.suffix or 'of file'}; give {KNOWN}")
    roots = [storage.folder(images, "--images")] if images else [file.parent / "images", file.parent]
    try:
        entries = list(dialects[file.suffix](file))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    except csv.Error as error:
        raise ConfigError(f"{file}: not CSV ({error}); mend or replace it") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; check its path and permissions") from None
    if not entries:
        raise ConfigError(f"{file} has no entries; give a captioned set with at least one image")
    root = next((root for root in roots if any(_is_file(root / entry["tile_id"]) for entry in entries)), None)
    if root is None:
        raise ConfigError(
            f"{file}: none of its {len(entries):,} images is there, the first would be "
            f"{roots[-1] / entries[0]['tile_id']}; give the folder that image paths start from with --images"
        )
    common: Row = {"domain": domain, "window": None, "colours": None, "failure": None}
    return [{"source": str(root / entry["tile_id"])} | common | entry for entry in entries]


def _jsonl(file: Path) -> Iterator[Row]:
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file} line {number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, or a list in a list in ...
                raise ConfigError(f"{where}: not JSON ({error}); mend or remove the line") from None
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
                raise ConfigError(f'{where}: want {{"image": "path", "captions": ["..."]}}; mend or remove the line')
            yield {"tile_id": _inside(entry["image"], where), **_facts(entry, where)}


def _facts(entry: Row, where: str) -> Row:
    """What an entry of captions.jsonl, or a sample's JSON, says of its image."""
    return {
        "captions": _texts(entry.get("captions"), where),
        "split": _split(entry.get("split"), where),
        "bounds": _bounds(entry.get("bounds"), where),
        "crs": _text(entry.get("crs"), "crs", where),
        "gsd_m": _number(entry.get("gsd_m"), where),
        "datetime": _text(entry.get("datetime"), "datetime", where),
    }


def _karpathy(file: Path) -> Iterator[Row]:
    told = storage.read_json(file, "--source")
    if not isinstance(told, dict) or not isinstance(told.get("images"), list):
        raise ConfigError(f'{file}: want {{"images": [...]}} as in dataset_rsicd.json; give another file')
    for number, entry in enumerate(told["images"], start=1):
        where = f"{file} images[{number - 1}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise ConfigError(f"{where}: has no filename; mend or remove it")
        sentences = entry.get("sentences")
        if isinstance(sentences, list):
            sentences = [told.get("raw") if isinstance(told, dict) else told for told in sentences]
        yield {
            "tile_id": _inside(entry["filename"], where),
            "captions": _texts(sentences, where),
            "split": _split(entry.get("split"), where),
        }


def _skyscript(file: Path) -> Iterator[Row]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        if not {"filepath", "title"} <= set(table.fieldnames or ()):
            raise ConfigError(f"{file}: want columns filepath and title, found {table.fieldnames}; give another file")
        for entry in table:
            where = f"{file} line {table.line_num}"
            titles = [entry["title"], entry.get("title_multi_objects")]
            texts = list(dict.fromkeys(title.strip() for title in titles if title and title.strip()))
            yield {
                "tile_id": _inside(entry["filepath"] or "", where),
                "captions": texts,
                "split": _split(entry.get("split"), where),
            }


def _samples(source: str, tars: list[Path], domain: str) -> list[Row]:
    rows = [row for tar in tars for row in webdataset.samples(tar, _facts, domain)]
    if all(row["failure"] is not None for row in rows):
        why = f"of {rows[0]['tile_id']}: {rows[0]['failure'].partition(':')[2]}" if rows else "there is none"
        raise ConfigError(f"--source {source}: no sample can be used, {why}; give {KNOWN}")
    return rows


def _scenes(folder: Path) -> list[Scene]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".tif", ".tiff") and path.is_file())
    if not files:
        raise ConfigError(f"--source {folder}: neither captions.jsonl nor *.tif there; give {KNOWN}")
    found = []
    for file in files:
        name = _printable(file.relative_to(folder).with_suffix("").as_posix())
        problem = None if _is_text(str(file)) else "its name is not UTF-8; rename the file"
        found.append(Scene(name, _printable(str(file)), problem=problem))
    return found


def _planned(scenes: list[Scene], source: str, domain: str, tiling: Tiling) -> list[Row]:
    """Tiles of scenes, scene by scene; remote ones are opened several at once, for most of that is waiting."""
    plan_one = functools.partial(_tiles, domain=domain, tiling=tiling)
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        found = list((pool.map if any(scene.is_remote for scene in scenes) else map)(plan_one, scenes))
    rows = [row for rows in found for row in rows]
    if all(row["failure"] is not None for row in rows):
        why = rows[0]["failure"].partition(":")[2]
        raise ConfigError(f"--source {source}: no scene can be used, {Path(scenes[0].source).name}: {why}")
    return rows


def _tiles(scene: Scene, domain: str, tiling: Tiling) -> list[Row]:
    name = _printable(scene.name)
    common: Row = {"source": _printable(scene.source), "domain": domain, "place": name, "captions": None}
    try:
        if scene.problem is not None:
            raise TileError(scene.problem)
        told: Row = {"datetime": scene.datetime} if scene.datetime else {}
        told |= {"source_version": version_of(scene.source, tiling.access)} if scene.is_remote else {}
        return [
            {**common, **vars(cell), **told, "colours": vars(colours), "failure": None}
            for cell, colours in tiling.plan(scene.source, name)
        ]
    except TileError as error:
        kind = "skipped" if isinstance(error, TileSkipped) else "failed"
        unread = {"source_version": None} if scene.is_remote else {}
        return [{**common, **unread, "tile_id": name, "window": None, "colours": None, "failure": f"{kind}:{error}"}]


def version_of(source: str, access: Access) -> str | None:
    """What tells a file from what it was: its size and time of change, or its server's mark; None when there is none.

    Raises:
        TileError: the server of a remote one cannot be asked.
    """
    try:
        return rasters.version_of(source, web_of(access), Patience(access.retry_s))
    except (OSError, ValueError):
        return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False


def _inside(path: str, where: str) -> str:
    """An image path that stays below its folder, so that a captions file cannot name any file of the machine."""
    if not path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ConfigError(f"{where}: image {path!r} is not a path below the images folder; make it relative")
    if not _is_text(path) or "\0" in path:
        raise ConfigError(f"{where}: image {path!r} is not a name in UTF-8; rename the file")
    return Path(path).as_posix()


def _texts(value: Any, where: str) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{where}: captions must be a list of strings; mend or remove the line")
    texts = [_whole(text).strip() for text in value]
    return [text for text in texts if text]


def _split(value: Any, where: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or value not in SPLITS:
        raise ConfigError(f"{where}: split {value!r} is none of {', '.join(SPLITS)}; rename it")
    return SPLITS[value]


def _bounds(value: Any, where: str) -> list[float] | None:
    if value is None:
        return None
    try:
        west, south, east, north = (float(part) for part in value)
    except (TypeError, ValueError, OverflowError):
        west = south = east = north = float("nan")
    if not are_bounds(west, south, east, north):
        raise ConfigError(f"{where}: bounds must be [west, south, east, north] in degrees, got {value!r}")
    return [west, south, east, north]


def _text(value: Any, name: str, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: {name} must be a string, got {value!r}")
    return None if value is None else _whole(value)


def _number(value: Any, where: str) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where}: gsd_m must be a number of metres, got {value!r}") from None


def _is_text(text: str) -> bool:
    """Whether a table can hold it: no lone surrogate, which stands for a byte that is no UTF-8 in a file's name."""
    return _whole(text) == text


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
