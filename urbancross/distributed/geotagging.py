"""`geotag`: a map and the table `tiles` to the table `geotags`."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from urbancross import globe, schemas, storage
from urbancross.config import GeotagConfig
from urbancross.distributed.mapping import make_map, map_file
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import refuse_other_maker, run_stage
from urbancross.errors import TileError, TileSkipped
from urbancross.geotags import BATCH_TILES, Tiles, tag_tiles
from urbancross.maps.table import MapTable
from urbancross.maps.visible import RULES
from urbancross.runs import Balance
from urbancross.tables import require_shards


class Geotagger:
    """Joins tiles with the features of a map's table that lie near them."""

    def __init__(self, table: str, max_tags: int, nearby: float) -> None:
        self.map = MapTable(storage.place(table))
        self.max_tags, self.nearby = max_tags, nearby

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        rows = tables["tiles"].to_pylist()
        found = self.together([row for row in rows if row["failure"] is None and row["bounds"] is not None])
        told = schemas.each_tile(rows, lambda row: found.get(row["tile_id"]) or self.alone(row))
        return pa.Table.from_pylist(told, schema=schemas.GEOTAGS)

    def together(self, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The tags of many tiles by id; of none where one of them, or a feature, cannot be joined."""
        try:
            return dict(zip([row["tile_id"] for row in rows], self.join(rows), strict=True)) if rows else {}
        except (TileError, shapely.GEOSException):  # each is tried by itself then, and fails by itself
            return {}

    def alone(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["bounds"] is None:
            raise TileSkipped("no bounds")
        return self.join([row])[0]

    def join(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tiles = Tiles.at(np.array([outline(row) for row in rows], dtype=object))
        return tag_tiles(tiles, self.map.meeting(tiles.windows(self.nearby)), self.max_tags, self.nearby)


def outline(row: dict[str, Any]) -> shapely.Geometry:
    """Where a tile lies: its footprint, or its bounds where its table has none."""
    return shapely.from_wkb(row["geometry"]) if row["geometry"] is not None else globe.box(row["bounds"])


def tally(geotags: pa.Table) -> dict[str, int]:
    return {
        "tiles where the map has nothing that can be seen": pc.sum(
            pc.equal(pc.list_value_length(geotags["center_tags"]), 0)
        ).as_py()
        or 0
    }


def stages(config: GeotagConfig) -> list[Stage]:
    file = map_file(config)
    told = {"max_tags": config.max_tags, "nearby": config.nearby}
    return [
        Stage(
            "geotags",
            {"tiles": ["bounds", "geometry"]},
            schemas.GEOTAGS,
            Geotagger,
            {"table": str(storage.place(config.archive) / file.table), **told},
            {"map": file.digest, "rules": RULES, **told},
            batch_tiles=BATCH_TILES,
            notes={"licence": file.licence, "map": file.table},
            tally=tally,
        )
    ]


def run(config: GeotagConfig) -> Balance:
    archive = storage.archive(config.archive)
    require_shards(archive, "tiles")
    file = map_file(config)
    (stage,) = stages(config)
    refuse_other_maker(archive / stage.output, stage.maker(archive))  # before a whole country is read
    make_map(archive, file, config)
    return run_stage(archive, stage, config)
