"""OpenStreetMap files as batches of features, in one streaming pass over the data (and one over the relations)."""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import osmium
import pyarrow as pa
import shapely
from osmium.osm.types import Area, Node, OSMEntity, TagList, Way

from urbancross.errors import ConfigError
from urbancross.maps.features import encode
from urbancross.maps.visible import HIDDEN, KEYS, is_area, tag_list

log = logging.getLogger(__name__)

SUFFIXES = (".osm", ".osm.gz", ".osm.bz2", ".osm.pbf")
COMMON = ("highway", "building", "natural", "landuse", "barrier", "waterway")  # asked for first
TOLD = tuple(dict.fromkeys((*COMMON, *KEYS, *HIDDEN, "area")))  # the keys that decide what of a feature can be seen
NOTHING = (None,) * len(TOLD)
BATCH = 16_384
# 16 bytes for every node that a file has: from this size on they lie in a file of their own (a country's extract).
NODES_ON_DISK_BYTES = 256 << 20

# WKB in hex: how a line begins before the number of its corners, and a polygon of one ring; the length of a corner.
LINE, POLYGON, CORNER = "0102000000", "010300000001000000", 32

Values = tuple[str | None, ...]
_WKB = osmium.geom.WKBFactory()


@dataclass
class Batch:
    """What was read, before shapely has seen it."""

    ids: list[str] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)  # WKB in hex
    rings: list[int] = field(default_factory=list)  # closed ways that bound an area

    def table(self) -> pa.Table:
        """As rows of `features.SCHEMA`."""
        for i in self.rings:
            self.shapes[i] = _polygon(self.shapes[i])
        wkb = [bytes.fromhex(text) for text in self.shapes]  # ten times faster than to have shapely read hex
        return encode(self.ids, self.tags, np.asarray(shapely.from_wkb(wkb), dtype=object), wkb)


def _polygon(line: str) -> str:
    """The WKB of a closed line as that of the polygon within, by its header: the corners are the same bytes."""
    count, first = len(LINE) + 8, line[len(LINE) + 8 :][:CORNER]
    closed = line.startswith(LINE) and line.endswith(first) and len(line) >= count + 4 * CORNER
    return POLYGON + line[len(LINE) :] if closed else line


def read(path: Path) -> Iterator[Batch]:
    """Read an OpenStreetMap file: every feature with a tag that can be seen, in the order of the file.

    Tagged nodes become points, closed ways that are areas polygons, other ways lines, multipolygon relations
    multipolygons with their holes. A way is one feature, never both a line and an area.

    Args:
        path: `.osm`, `.osm.gz`, `.osm.bz2` or `.osm.pbf`; nodes before ways before relations, as all extracts are.

    Raises:
        ConfigError: the file is missing, cut short, or no OpenStreetMap file.
    """
    if not path.is_file():
        raise ConfigError(f"no OpenStreetMap file at {path}; pass an .osm, .osm.gz or .osm.pbf file with --osm")
    with tempfile.TemporaryDirectory(prefix="urbancross-nodes-") as folder:
        on_disk = path.stat().st_size > NODES_ON_DISK_BYTES
        nodes = f"sparse_file_array,{folder}/nodes" if on_disk else "flex_mem"
        try:
            yield from _batches(path, nodes)
        except RuntimeError as error:
            raise ConfigError(
                f"{path} cannot be read as OpenStreetMap data ({' '.join(str(error).split())});"
                " download it again, or put it in order with osmium sort"
            ) from error


def _batches(path: Path, nodes: str) -> Iterator[Batch]:
    can_be_seen = osmium.filter.KeyFilter(*KEYS)
    kinds = osmium.osm.NODE | osmium.osm.WAY | osmium.osm.AREA  # a relation comes again as an area
    objects = osmium.FileProcessor(path).with_locations(nodes).with_areas(can_be_seen)
    objects = objects.with_filter(osmium.filter.EntityFilter(kinds)).with_filter(can_be_seen)
    known: dict[Values, tuple[tuple[str, ...], bool]] = {}
    batch, placeless = Batch(), 0
    for item in objects:
        if isinstance(item, Area) and item.from_way():
            continue  # it was taken as a way
        values = _values(item.tags)
        found = known.get(values)
        if found is None:
            told = {key: value for key, value in zip(TOLD, values, strict=False) if value is not None}
            found = known[values] = (tuple(tag_list(told)), is_area(told))
        tags, bounds_area = found
        if not tags:
            continue
        wkb = _wkb(item)
        if wkb is None:
            placeless += 1
            continue
        if bounds_area and isinstance(item, Way) and item.is_closed():
            batch.rings.append(len(batch.ids))
        batch.ids.append(_name(item))
        batch.tags.append(tags)
        batch.shapes.append(wkb)
        if len(batch.ids) == BATCH:
            yield batch
            batch = Batch()
    if batch.ids:
        yield batch
    if placeless:
        log.warning("%s: %d features are left out: the file lacks their nodes", path, placeless)


def _values(tags: TagList) -> Values:
    """What a feature has for each key of `TOLD`, cut short after the only one of its tags where it has no more.

    To ask for each key is faster than to turn every tag of an address into Python's strings.
    """
    get = tags.get
    if len(tags) == 1:
        for place, key in enumerate(TOLD):
            value = get(key)
            if value is not None:
                return (*NOTHING[:place], value)
    return tuple(map(get, TOLD))


def _name(item: OSMEntity) -> str:
    if isinstance(item, Way):
        return f"way/{item.id}"
    if isinstance(item, Area):
        return f"relation/{item.orig_id()}"
    assert isinstance(item, Node)
    return f"node/{item.id}"


def _wkb(item: OSMEntity) -> str | None:
    """The point, line or multipolygon of a node, way or area as WKB in hex; none where the file lacks its nodes."""
    try:
        if isinstance(item, Way):
            return _WKB.create_linestring(item)
        if isinstance(item, Node):
            return _WKB.create_point(item)
        if isinstance(item, Area):
            return _WKB.create_multipolygon(item)
    except (RuntimeError, osmium.InvalidLocationError):  # nodes outside the extract, open rings, all in one place
        if isinstance(item, Way):
            places = [(node.lon, node.lat) for node in item.nodes if node.location.valid()]
            return shapely.LineString(places).wkb_hex if len(set(places)) > 1 else None
    return None
