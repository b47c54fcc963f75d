"""`geotag`: a map extract and the table `tiles` to the table `geotags`."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from urbancross import geotags, schemas, storage
from urbancross.config import GeotagConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.errors import TileSkipped
from urbancross.runs import Balance


class Geotagger:
    """Holds the features of one extract in memory and looks tiles up in them."""

    def __init__(self, osm: str, max_tags: int) -> None:
        self.index = geotags.FeatureIndex(geotags.read_osm(Path(osm)))
        self.max_tags = max_tags

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        return pa.Table.from_pylist(schemas.each_tile(tables["tiles"].to_pylist(), self.tags), schema=schemas.GEOTAGS)

    def tags(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["bounds"] is None:
            raise TileSkipped("no bounds")
        center, surrounding = self.index.tags_of(tuple(row["bounds"]), max_tags=self.max_tags)
        return {"center_tags": center, "surrounding_tags": surrounding}


def stages(config: GeotagConfig) -> list[Stage]:
    osm = storage.file(config.osm, "--osm")
    told = {"osm": str(osm), "max_tags": config.max_tags}
    made_by = {**told, "osm": storage.digest(osm)}
    return [Stage("geotags", {"tiles": ["bounds"]}, schemas.GEOTAGS, Geotagger, told, made_by, batch_tiles=256)]


def run(config: GeotagConfig) -> Balance:
    archive = storage.archive(config.archive)
    (stage,) = stages(config)
    return run_stage(archive, stage, config)
