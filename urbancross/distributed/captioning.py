"""`caption`: geo-tags to the table `captions@ENGINE`."""

from typing import Any

import pyarrow as pa

from urbancross import captions, schemas, storage
from urbancross.config import CaptionConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.errors import TileSkipped
from urbancross.runs import Balance


class TemplateCaptions:
    """Captions from a tile's geo-tags alone; the choice of words follows from the seed and the tile's id."""

    def __init__(self, seed: int, captions_per_tile: int) -> None:
        self.engine, self.seed, self.count = captions.TemplateCaptioner(), seed, captions_per_tile

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        return pa.Table.from_pylist(
            schemas.each_tile(tables["geotags"].to_pylist(), self.write), schema=schemas.CAPTIONS
        )

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        center, surrounding = row["center_tags"], row["surrounding_tags"]
        seed = int(storage.digest_text(f"{self.seed}/{row['tile_id']}")[:12], 16)
        texts = self.engine.captions(center, surrounding, seed, self.count)
        if not texts:
            raise TileSkipped("no geo-tags")
        return {
            "captions": texts,
            "engine": "template",
            "prompt_version": captions.PROMPT_VERSION,
            "tags": [*center, *surrounding],
            "seed": self.seed,
        }


def stages(config: CaptionConfig) -> list[Stage]:
    told = {"seed": config.seed, "captions_per_tile": config.captions_per_tile}
    made_by = {**told, "prompt_version": captions.PROMPT_VERSION}
    table = f"captions@{config.engine}"
    return [Stage(table, {"geotags": None}, schemas.CAPTIONS, TemplateCaptions, told, made_by, batch_tiles=256)]


def run(config: CaptionConfig) -> Balance:
    archive = storage.archive(config.archive)
    (stage,) = stages(config)
    return run_stage(archive, stage, config)
