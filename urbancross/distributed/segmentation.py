"""`segment`: tiles to the table `segments@NAME`, ranked without their captions."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from urbancross import schemas, storage
from urbancross.config import SegmentConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.errors import ConfigError
from urbancross.runs import Balance
from urbancross.segments.batch import segment_tiles
from urbancross.segments.engines import ENGINES


class Segmenter:
    """One mask maker: masks of a tile, then the best of them as segments."""

    def __init__(self, engine: str, made_with: dict[str, Any], choice: dict[str, Any]) -> None:
        self.maker, self.choice = ENGINES[engine](**made_with), choice
        self.went_on: Callable[[], None] = lambda: None

    def on_step(self, went_on: Callable[[], None]) -> None:
        self.went_on = went_on

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        return segment_tiles(self.maker, tables["tiles"], self.went_on, **self.choice)


def stages(config: SegmentConfig) -> list[Stage]:
    if config.min_area >= config.max_area:
        raise ConfigError(f"--min-area {config.min_area} must be below --max-area {config.max_area}")
    choice = config.model_dump(include={"max_segments", "min_area", "max_area"})
    settings: dict[str, Any] = {"engine": config.engine, **choice}
    made_with: dict[str, Any] = {}
    name: str = config.engine
    notes = {}
    if config.checkpoint is not None:
        from urbancross.segments.sam import made_by  # with torch, which workers of other engines start without

        name, settings["sam"], made_with = made_by(config, config.checkpoint)
        notes["checkpoint"] = made_with["checkpoint"]
    return [
        Stage(
            f"segments@{config.name or name}",
            {"tiles": ["image"]},
            schemas.SEGMENTS,
            Segmenter,
            {"engine": config.engine, "made_with": made_with, "choice": choice},
            settings,
            config.batch_tiles,
            notes,
        )
    ]


def run(config: SegmentConfig) -> Balance:
    archive = storage.archive(config.archive)
    (stage,) = stages(config)
    return run_stage(archive, stage, config)
