"""STAC as scenes: items of local JSON, of an API and of stac-geoparquet, each with its raster that is to be cut."""

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import requests
from pystac.utils import make_absolute_href
from pystac_client import Client, ItemSearch
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError, ParametersError
from pystac_client.stac_api_io import StacApiIO

from urbancross import hrefs, storage
from urbancross.errors import ConfigError, TileError
from urbancross.globe import meets
from urbancross.scenes.rasters import BETWEEN, Scene
from urbancross.tiles import parse_bbox

log = logging.getLogger(__name__)

KINDS = {"Feature", "FeatureCollection", "Collection", "Catalog"}
TABLES = {".parquet", ".geoparquet"}
DOCUMENTS = {".json", ".geojson"}
GEOTIFF = ("image/tiff", "image/vnd.stac.geotiff")  # what media types of GeoTIFFs, COGs among them, begin with
NOT_DATA = {"thumbnail", "overview", "metadata"}
TIMEOUT_S = (10, 60)
SHOWN = 8  # collections that an error names, at most
BROKEN = (
    pystac.STACError, pystac.STACTypeError, ClientTypeError,
    KeyError, TypeError, ValueError, AttributeError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Which items, and which of their assets, by flags.

    Attributes:
        asset: its name, or those of red, green and blue; None: the one GeoTIFF.
        collections: ids; empty: any.
        bbox, datetime: as flags have them; query, filter: only an API knows them.
        signed: whether URLs are signed when they are read, so that a signature in one is of no use.
    """

    asset: str | None = None
    collections: tuple[str, ...] = ()
    bbox: str | None = None
    datetime: str | None = None
    query: tuple[str, ...] = ()
    filter: str | None = None
    max_items: int | None = None
    signed: bool = False

    @property
    def flags(self) -> list[str]:
        """Those that only mean something to STAC."""
        names = ("asset", "collections", "bbox", "datetime", "query", "filter", "max_items")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]


@dataclass(frozen=True)
class Asset:
    href: str
    media: str | None
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """What is used of one."""

    name: str  # "{collection}/{id}", for ids are unique in a collection only
    when: tuple[str | None, str | None]  # from and to, ISO 8601
    bbox: tuple[float, ...] | None
    assets: Mapping[str, Asset] = field(default_factory=dict)


def scenes(source: str, asked: Asked) -> list[Scene] | None:
    """The scenes of a STAC source, by name; None: it is another kind of source.

    Raises:
        ConfigError: it cannot be read, holds no item that was asked for, or it is not clear which asset is meant.
    """
    if source.startswith(("http://", "https://")):
        hrefs.refuse_secrets(source, "--source")
        found = list(_of_api(source, asked))
    else:
        path = Path(source).expanduser()
        told = _document(path) if path.suffix.lower() in DOCUMENTS and path.is_file() else None
        if told is None and not (path.suffix.lower() in TABLES and path.is_file()):
            return None
        if asked.query or asked.filter:
            raise ConfigError("--query and --filter are for a STAC API to answer; leave them out for a file")
        path = storage.local(source)
        read = _of_table(path) if told is None else _of_document(path, told)
        found = list(islice(_chosen(read, asked), asked.max_items))
    if not found:
        raise ConfigError(f"--source {source}: no item is as asked for; check {', '.join(asked.flags) or 'the source'}")
    stripped: list[str] = []
    chosen = [_scene(item, asked, stripped) for item in sorted(found, key=lambda item: item.name)]
    if stripped:
        log.warning("%s URLs held a signature (%s), which the plan does not keep", len(stripped), stripped[0])
    return chosen


def _scene(item: Item, asked: Asked, stripped: list[str]) -> Scene:
    """
    Args:
        stripped: takes the name of a parameter that was left out of a URL.

    Raises:
        ConfigError: several assets may be meant, or one's URL holds a secret.
    """
    try:
        chosen = _assets(item, asked.asset)
    except TileError as error:
        return Scene(item.name, item.name, item.when[0], problem=str(error))
    found = []
    for href in chosen:
        try:
            path = hrefs.local_path(href)
            secrets = hrefs.secrets_in(href) if path is None else []
        except (TileError, ValueError) as error:
            return Scene(item.name, item.name, item.when[0], problem=str(error))
        if secrets and not asked.signed:
            raise ConfigError(
                f"item {item.name}: the URL of its asset holds a credential ({', '.join(secrets)}), which would be "
                "kept; give --sign-url, by which URLs are signed when they are read, or a source without signatures"
            )
        stripped += secrets[:1]
        found.append(path or hrefs.bare(href))
    return Scene(item.name, BETWEEN.join(found), item.when[0])


def _assets(item: Item, wanted: str | None) -> list[str]:
    """Hrefs of the asset, or of those of red, green and blue.

    Raises:
        TileError: the item has not what is wanted.
        ConfigError: several may be.
    """
    if wanted is not None:
        names = [name.strip() for name in wanted.split(",")]
        if absent := [name for name in names if name not in item.assets]:
            raise TileError(f"no asset {absent[0]}, it has {', '.join(item.assets) or 'none'}; give another --asset")
        return [item.assets[name].href for name in names]
    rasters = {
        name: asset
        for name, asset in item.assets.items()
        if (asset.media or "").lower().startswith(GEOTIFF)
        or (not asset.media and asset.href.partition("?")[0].lower().endswith((".tif", ".tiff")))
    }
    choices = (
        [name for name in rasters if name == "visual"],
        [name for name, asset in rasters.items() if "visual" in asset.roles],
        [name for name, asset in rasters.items() if "data" in asset.roles],
        [name for name, asset in rasters.items() if not NOT_DATA & {*asset.roles}],
    )
    best = next(filter(None, choices), [])
    if not best:
        raise TileError(f"no GeoTIFF among its assets ({', '.join(item.assets) or 'none'}); name one with --asset")
    if len(best) > 1:
        raise ConfigError(
            f"item {item.name} has several rasters: {', '.join(best)}; give --asset NAME, or --asset RED,GREEN,BLUE"
        )
    return [rasters[best[0]].href]


def _chosen(items: Iterable[Item], asked: Asked) -> Iterator[Item]:
    """Of items of a file, those that were asked for, as an API would choose."""
    bounds = None if asked.bbox is None else parse_bbox(asked.bbox)
    first, last = _interval(asked.datetime)
    for item in items:
        if asked.collections and item.name.rpartition("/")[0] not in asked.collections:
            continue
        if bounds is not None and (item.bbox is None or not meets(bounds, _flat(item.bbox))):
            continue
        if first is not None or last is not None:
            begin, end = (_instant(when) for when in item.when)
            if begin is None or end is None or (last and begin > last) or (first and end < first):
                continue
        yield item


def _interval(told: str | None) -> tuple[datetime | None, datetime | None]:
    """As pystac-client reads it: `2024`, `2024-06/2024-08`, `2024-06-01/..`."""
    if told is None:
        return None, None
    try:
        interval = ItemSearch("", datetime=told).get_parameters()["datetime"]
        first, _, last = interval.partition("/")
        return _instant(first), _instant(last or first)
    except Exception as error:  # also the plain ones that pystac-client raises
        raise ConfigError(f"--datetime {told}: {_line(error)}; want such as 2024-06 or 2024-06-01/2024-08-31") from None


def _query(told: tuple[str, ...]) -> dict[str, Any] | None:
    """As pystac-client reads it, but numbers are numbers, for an API that compares them as it is told."""
    found: dict[str, Any] = {}
    for text in told:
        read = ItemSearch("", query=[text]).get_parameters().get("query")
        if not read:
            raise ConfigError(
                f'--query {text}: want a property, one of <= >= < > <> = and a value: "eo:cloud_cover<10"'
            )
        for name, conditions in read.items():
            found.setdefault(name, {}).update({operator: _number(value) for operator, value in conditions.items()})
    return found or None


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _instant(told: str | None) -> datetime | None:
    if told is None or told == "..":
        return None
    found = datetime.fromisoformat(told)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _flat(bbox: tuple[float, ...]) -> tuple[float, ...]:
    return bbox if len(bbox) == 4 else (*bbox[:2], *bbox[3:5])


def _document(path: Path) -> dict[str, Any] | None:
    """A JSON that is STAC or GeoJSON by its type; None: another, or none, of which others say more."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) and told.get("type") in KINDS else None


def _of_document(path: Path, told: dict[str, Any]) -> Iterator[Item]:
    with _readable(f"--source {path}"):
        if told["type"] == "FeatureCollection":
            for number, feature in enumerate(told["features"]):
                with _readable(f"--source {path} features[{number}]"):
                    item = pystac.Item.from_dict(feature, preserve_dict=False)
                yield _item(item, str(path))
            return
        read: Any = pystac.read_file(str(path))
        items = read.get_items(recursive=True) if isinstance(read, pystac.Catalog) else [read]
        for item in items:
            yield _item(item, str(path))


def _item(item: pystac.Item, start: str) -> Item:
    """
    Args:
        start: where relative hrefs begin that the item does not say more of.
    """
    common = item.common_metadata
    begin, end = common.start_datetime or item.datetime, common.end_datetime or item.datetime
    name = item.id if item.collection_id is None else f"{item.collection_id}/{item.id}"
    assets = {
        key: Asset(
            asset.get_absolute_href() or make_absolute_href(asset.href, start),
            asset.media_type,
            tuple(asset.roles or ()),
        )
        for key, asset in item.assets.items()
    }
    when = (_iso(item.datetime or begin), _iso(end))
    return Item(name, when, None if item.bbox is None else tuple(item.bbox), assets)


def _iso(when: Any) -> str | None:
    if when is None:
        return None
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    aware = when if when.tzinfo else when.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _of_table(path: Path) -> Iterator[Item]:
    """Items of a stac-geoparquet file, whose columns are an item's fields and properties."""
    with _readable(f"--source {path}"):
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"--source {path} is no Parquet file ({_line(error)}); give another") from None
        names = file.schema_arrow.names
        if absent := [name for name in ("id", "assets") if name not in names]:
            raise ConfigError(f"--source {path}: no column {absent[0]}, so it is no stac-geoparquet; give another file")
        used = ("id", "collection", "datetime", "start_datetime", "end_datetime", "bbox", "assets")
        for batch in file.iter_batches(columns=[name for name in used if name in names]):
            for row in batch.to_pylist():
                yield _row(row, str(path))


def _row(row: dict[str, Any], start: str) -> Item:
    told = json.loads(row["assets"]) if isinstance(row["assets"], str) else row["assets"]
    assets = {
        key: Asset(make_absolute_href(asset["href"], start), asset.get("type"), tuple(asset.get("roles") or ()))
        for key, asset in (told or {}).items()
        if asset and asset.get("href")
    }
    at, begin, end = (row.get(name) for name in ("datetime", "start_datetime", "end_datetime"))
    bbox = row.get("bbox")
    if isinstance(bbox, dict):
        bbox = [bbox[name] for name in ("xmin", "ymin", "xmax", "ymax")]
    name = f"{row['collection']}/{row['id']}" if row.get("collection") else str(row["id"])
    return Item(name, (_iso(at or begin), _iso(end or at)), None if bbox is None else tuple(bbox), assets)


def _of_api(url: str, asked: Asked) -> Iterator[Item]:
    bounds = None if asked.bbox is None else parse_bbox(asked.bbox)
    _interval(asked.datetime)
    by_text = asked.filter is not None and not asked.filter.lstrip().startswith("{")
    with _readable(f"--source {url}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what an API does not declare, which is said below
        client = Client.open(url, stac_io=StacApiIO(timeout=TIMEOUT_S))
        if not client.conforms_to("ITEM_SEARCH"):
            raise ConfigError(
                f"--source {url}: not a STAC API that searches items (its conformsTo does not say so); give an API's "
                "landing page, or download the catalog"
            )
        for flag, kind in (("--query", "QUERY"), ("--filter", "FILTER")):
            if flag in asked.flags and not client.conforms_to(kind):
                raise ConfigError(f"{flag}: the API at {url} does not know it; leave it out")
        if asked.collections and client.conforms_to("COLLECTIONS"):
            for name in asked.collections:
                if client.get_collection(name) is None:
                    known = [each.id for each in islice(client.get_collections(), SHOWN + 1)]
                    listed = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
                    raise ConfigError(f"--collections {name}: the API at {url} has none of this name, but {listed}")
        search = client.search(
            method="GET" if by_text else "POST",  # CQL2 as text is what GET takes, as JSON what POST takes
            max_items=asked.max_items,
            limit=100,
            collections=list(asked.collections) or None,
            bbox=bounds,
            datetime=asked.datetime,
            query=_query(asked.query),
            filter=asked.filter if by_text or asked.filter is None else json.loads(asked.filter),
        )
        for item in search.items():
            yield _item(item, url)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """What reading raises, as one line; none of what a server answered, which may repeat what it was sent."""
    try:
        yield
    except ConfigError:
        raise
    except APIError as error:
        status = f" ({error.status_code})" if getattr(error, "status_code", None) else ""
        raise ConfigError(f"{where}: no answer of a STAC API{status}; check the URL and the flags") from None
    except requests.exceptions.RequestException as error:
        raise ConfigError(f"{where}: no STAC API answers ({type(error).__name__}); check the URL") from None
    except ParametersError as error:
        raise ConfigError(f"{where}: {_line(error)}") from None
    except OSError as error:  # a link to a file that is not there
        raise ConfigError(f"{where}: a link cannot be followed ({_line(error)}); mend it") from None
    except BROKEN as error:
        raise ConfigError(
            f"{where} is no STAC Item, ItemCollection, Collection, Catalog or API ({_line(error)}); give another"
        ) from None


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]
