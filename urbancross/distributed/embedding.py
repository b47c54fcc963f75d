"""`embed`: tiles to the table `embeddings@NAME`."""

import pyarrow as pa

from urbancross import schemas, storage
from urbancross.config import EmbedConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.embedding import embed_tiles
from urbancross.models import checkpoints
from urbancross.runs import Balance


class TileEmbedder:
    """One replica of an encoder: Ray builds it once per worker and calls it per batch."""

    def __init__(self, checkpoint: str, device: str) -> None:
        self.encoder = checkpoints.load(checkpoints.resolve(checkpoint), device)

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        return embed_tiles(self.encoder, tables["tiles"])


def stages(config: EmbedConfig) -> list[Stage]:
    model = checkpoints.resolve(config.checkpoint)
    place = str(model.folder or model.name)
    name = config.name or (model.folder.name if model.folder else model.name.replace("/", "-"))
    stage = Stage(
        f"embeddings@{name}",
        {"tiles": ["image"]},
        schemas.embeddings(checkpoints.width_of(model)),
        TileEmbedder,
        {"checkpoint": place, "device": config.device},
        {"checkpoint": model.fingerprint},
        config.batch_tiles,
        notes={"checkpoint": place},
    )
    return [stage]


def run(config: EmbedConfig) -> Balance:
    archive = storage.archive(config.archive)
    (stage,) = stages(config)
    return run_stage(archive, stage, config)
