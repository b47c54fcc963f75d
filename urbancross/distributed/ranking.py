"""`rank`: how well the segments of every tile fit its captions, to the table `ranks@NAME`."""

import pyarrow as pa

from urbancross import schemas, storage
from urbancross.config import RankConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.errors import ConfigError
from urbancross.models import checkpoints
from urbancross.runs import Balance
from urbancross.segments.scoring import rank_tiles
from urbancross.storage import Place
from urbancross.tables import table_of


class SegmentRanker:
    """One replica of an encoder that looks at segments and reads captions."""

    def __init__(self, checkpoint: str, segments: str, captions: str, device: str) -> None:
        self.encoder = checkpoints.load(checkpoints.resolve(checkpoint), device)
        self.encoder.bank = None  # scores are plain cosines
        self.segments, self.captions = segments, captions

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        return rank_tiles(self.encoder, tables["tiles"], tables[self.segments], tables[self.captions])


def stages(config: RankConfig, archive: Place) -> list[Stage]:
    model = checkpoints.resolve(config.checkpoint)
    if model.folder is None and model.base == "starter":
        raise ConfigError("--checkpoint starter: its heads have learnt nothing yet; give a checkpoint of pretrain's")
    segments = table_of(archive, "segments", config.segments, "segments")
    captions = table_of(archive, "captions", config.captions, "captions")
    variants = (table.partition("@")[2] for table in (segments, captions))
    return [
        Stage(
            f"ranks@{config.name or '-'.join([*variants, model.variant])}",
            {"tiles": ["image"], segments: ["segments"], captions: ["captions"]},
            schemas.RANKS,
            SegmentRanker,
            {
                "checkpoint": model.place,
                "segments": segments,
                "captions": captions,
                "device": config.device,
            },
            {"checkpoint": model.fingerprint},
            config.batch_tiles,
            notes={"checkpoint": model.place},
        )
    ]


def run(config: RankConfig) -> Balance:
    archive = storage.archive(config.archive)
    (stage,) = stages(config, archive)
    return run_stage(archive, stage, config)
