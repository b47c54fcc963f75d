"""The table of a map: features in the order of their place, in parts; whole only when the last object says so.

Its parts do not follow the tiles: a tile's features are found by the boxes of row groups, as Parquet keeps them.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from urbancross import storage
from urbancross.errors import ConfigError, SchemaError
from urbancross.maps.features import SCHEMA, Features, boxes, decode, geoparquet
from urbancross.maps.order import in_order
from urbancross.schemas import BBOX
from urbancross.storage import Place

WHOLE = ".whole.json"  # names the parts and their rows; published last
PART_NAME = "part-{:05d}.parquet"
ROW_GROUP = 2048
JOINED = ["tags", "geometry", "bbox"]  # columns that the join needs
NO_FEATURES = SCHEMA.empty_table().select(JOINED)
AHEAD = 2  # batches between the reader and the one that makes their shapes


class Batch(Protocol):
    """What a reader of maps yields: its shapes are made in another thread than the reader's."""

    def table(self) -> pa.Table: ...


def write(table: Place, batches: Iterable[Batch], maker: dict[str, Any]) -> int:
    """Publish all features as a whole table, unless there are none; returns their number."""
    schema = storage.with_made_by(geoparquet(), maker)
    rows: dict[str, int] = {}
    for part in in_order(_tables(batches)):
        name = PART_NAME.format(len(rows))
        storage.create(table / name, encoded(part.replace_schema_metadata(schema.metadata)))
        rows[name] = part.num_rows
    if rows:
        storage.write_json(table / WHOLE, {"parts": rows})
    return sum(rows.values())


def _tables(batches: Iterable[Batch]) -> Iterator[pa.Table]:
    """Rows of batches in order; shapely and pyarrow work on one while the next is read."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[pa.Table]] = deque()
        for batch in batches:
            waiting.append(pool.submit(batch.table))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def encoded(part: pa.Table) -> memoryview:
    """A part as the bytes of a GeoParquet file in small row groups; only bounds have statistics, shapes have no use."""
    buffer = BytesIO()
    edges = [f"bbox.{field.name}" for field in BBOX]
    pq.write_table(
        part,
        buffer,
        compression="zstd",
        compression_level=1,
        row_group_size=ROW_GROUP,
        use_dictionary=["tags.list.element"],
        write_statistics=edges,
    )
    return buffer.getbuffer()


def parts(table: Place) -> dict[str, int] | None:
    """The parts of a whole table and their rows; None where it was never finished."""
    told = storage.json_or_none(table / WHOLE, "map")
    return told["parts"] if isinstance(told, dict) and isinstance(told.get("parts"), dict) else None


def problems(table: Place) -> list[str]:
    """What is wrong with a table that should be whole; nothing if all is well."""
    rows = parts(table)
    if rows is None:
        return [f"{table.name} is not whole; run geotag again with the same map"]
    found = storage.shards(table)
    lacking = [f"{table.name} lacks {name}" for name in sorted(rows.keys() - set(found))]
    wrong = []
    for name in sorted(set(found) & rows.keys()):
        try:
            here = storage.read_shard(table / name)
            if here.num_rows != rows[name] or here.schema.names != geoparquet().names:
                wrong.append(f"{table.name}/{name} has {here.num_rows:,} rows, {rows[name]:,} wanted")
        except SchemaError as error:
            wrong.append(f"{table.name}/{name}: {error}")
    return lacking + wrong


class MapTable:
    """Finds the features near tiles: reads those row groups alone whose box meets them, each once for a neighbourhood.

    Row groups stay in memory, as bytes of Parquet's columns, until a question that does not need them.
    """

    def __init__(self, table: Place) -> None:
        """
        Raises:
            ConfigError: the table is not there, or not whole.
        """
        rows = parts(table)
        if rows is None:
            raise ConfigError(f"{table} is not whole; run geotag again with the map that it was made from")
        self.table = table
        self.groups: list[tuple[str, int]] = []
        found: list[list[float]] = []
        for name in rows:
            with storage.parquet(table / name) as file:
                for number in range(file.metadata.num_row_groups):
                    self.groups.append((name, number))
                    found.append(_box(file.metadata.row_group(number)))
        self.boxes = np.array(found).reshape(-1, 4)
        self.held: dict[tuple[str, int], pa.Table] = {}

    def meeting(self, windows: np.ndarray) -> Features:
        """All features whose box meets the box of one of the windows, and some more, in the order of the table."""
        edges = shapely.bounds(shapely.get_parts(windows))
        group, window = shapely.STRtree(shapely.box(*edges.T)).query(shapely.box(*self.boxes.T))
        wanted = {self.groups[i]: edges[window[group == i]] for i in np.unique(group)}
        self.held = {group: self.held[group] for group in wanted if group in self.held}
        for name in dict.fromkeys(name for name, _ in wanted):
            numbers = [number for part, number in wanted if part == name and (part, number) not in self.held]
            if numbers:
                with storage.parquet(self.table / name) as file:
                    for number in numbers:
                        self.held[name, number] = file.read_row_group(number, JOINED)
        found = [_near(self.held[group], edges) for group, edges in wanted.items()]
        return decode(pa.concat_tables(found) if found else NO_FEATURES)


def _near(table: pa.Table, windows: np.ndarray) -> pa.Table:
    """Rows that meet the box around a few windows: to test each window takes longer than to read some rows too many."""
    places, low, high = boxes(table), windows[:, :2].min(axis=0), windows[:, 2:].max(axis=0)
    near = ((places[:, :2] <= high) & (places[:, 2:] >= low)).all(axis=1)
    return table if near.all() else table.filter(pa.array(near))


def _box(group: pq.RowGroupMetaData) -> list[float]:
    columns = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
    ends = (("xmin", "min"), ("ymin", "min"), ("xmax", "max"), ("ymax", "max"))
    return [getattr(columns[f"bbox.{name}"], end) for name, end in ends]
