"""`segment`: tiles to the table `segments@ENGINE`, ranked without their captions."""

from typing import Any

import pyarrow as pa

from urbancross import schemas, segments, storage
from urbancross.config import SegmentConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.errors import ConfigError
from urbancross.runs import Balance
from urbancross.tiles import decode


class Segmenter:
    """One mask maker: masks of a tile, then the best of them as segments."""

    def __init__(self, engine: str, **choice: Any) -> None:
        self.maker, self.choice = segments.ENGINES[engine](), choice

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        return pa.Table.from_pylist(schemas.each_tile(tables["tiles"].to_pylist(), self.cut), schema=schemas.SEGMENTS)

    def cut(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"segments": segments.choose(self.maker.masks(decode(row["image"])), **self.choice)}


def stages(config: SegmentConfig) -> list[Stage]:
    if config.min_area >= config.max_area:
        raise ConfigError(f"--min-area {config.min_area} must be below --max-area {config.max_area}")
    told = config.model_dump(include={"engine", "max_segments", "min_area", "max_area"})
    table = f"segments@{config.engine}"
    return [Stage(table, {"tiles": ["image"]}, schemas.SEGMENTS, Segmenter, told, told, batch_tiles=16)]


def run(config: SegmentConfig) -> Balance:
    archive = storage.archive(config.archive)
    (stage,) = stages(config)
    return run_stage(archive, stage, config)
