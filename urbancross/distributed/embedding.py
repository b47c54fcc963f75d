"""`embed`: tiles to the table `embeddings@NAME`, or segments to `segment_embeddings@NAME`."""

from typing import Any

import pyarrow as pa

from urbancross import schemas, storage
from urbancross.config import EmbedConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.models import names
from urbancross.runs import Balance
from urbancross.storage import Place
from urbancross.tables import table_of


class TileEmbedder:
    """One replica of an encoder: Ray builds it once per worker and calls it per batch."""

    def __init__(self, model: names.Model, device: str) -> None:
        from urbancross.models import checkpoints  # and torch, which the driver goes without

        self.encoder = checkpoints.load(model, device, texts=False)

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        from urbancross.embedding import embed_tiles

        return embed_tiles(self.encoder, tables["tiles"])


class SegmentEmbedder(TileEmbedder):
    """The same for the first segments of every tile."""

    def __init__(self, model: names.Model, device: str, segments: str, max_segments: int) -> None:
        super().__init__(model, device)
        self.segments, self.max_segments = segments, max_segments

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        from urbancross.embedding import embed_segments

        return embed_segments(self.encoder, tables["tiles"], tables[self.segments], self.max_segments)


def stages(config: EmbedConfig, archive: Place) -> list[Stage]:
    model = names.resolve(config.checkpoint)
    name, width = config.name or model.variant, names.vector_width(model)
    arguments: dict[str, Any] = {"model": model, "device": config.device}
    settings: dict[str, Any] = {"checkpoint": model.fingerprint}
    notes = {"checkpoint": model.place, "width": names.width_of(model)}  # vectors may have further coordinates
    common: dict[str, Any] = {"batch_tiles": config.batch_tiles, "notes": notes}
    if config.segments is None:
        table, sources = f"embeddings@{name}", {"tiles": ["image"]}
        return [Stage(table, sources, schemas.embeddings(width), TileEmbedder, arguments, settings, **common)]
    segments = table_of(archive, "segments", config.segments, "segments")
    table, sources = f"segment_embeddings@{name}", {"tiles": ["image"], segments: ["segments"]}
    arguments |= {"segments": segments, "max_segments": config.max_segments}
    settings |= {"max_segments": config.max_segments}
    return [Stage(table, sources, schemas.segment_embeddings(width), SegmentEmbedder, arguments, settings, **common)]


def run(config: EmbedConfig) -> Balance:
    archive = storage.archive(config.archive)
    (stage,) = stages(config, archive)
    return run_stage(archive, stage, config)
