"""`segment`: tiles to the table `segments@NAME`, ranked without their captions."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import torch

from urbancross import schemas, storage
from urbancross.config import SegmentConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.errors import ConfigError
from urbancross.models import sam
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
        name, settings["sam"], made_with = with_sam(config, config.checkpoint)
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


def with_sam(config: SegmentConfig, checkpoint: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The variant's name, what changes the result, and what `SamMasks` is built from.

    Raises:
        ConfigError: the weights are not there, or a URL without digest.
        CheckpointError: they are not those of a SAM, or not those of the digest.
    """
    file = sam.weights(checkpoint, config.sha256)
    shape, fast = sam.shape_of(sam.read(file)), config.mode == "fast"
    half = shape.img_size // 2 // shape.patch_size * shape.patch_size
    input_px = config.input_px or (half if fast else shape.img_size)
    settings = {
        "points_per_side": config.points_per_side or (16 if fast else 32),
        "input_px": None if input_px == shape.img_size else input_px,
        "precision": config.precision or ("bf16" if fast and computes_in_bf16(config.device) else "fp32"),
        **config.model_dump(include={"pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"}),
    }
    digest = storage.digest(file)
    work = config.model_dump(include={"points_per_batch", "encoder_batch", "compile", "device"})
    source = checkpoint if "://" in checkpoint else str(file.absolute())  # workers stand in other folders
    made_with = {"checkpoint": source, "sha256": digest, **settings, **work}
    return sam.variant_of(shape), {"weights": digest, **settings}, made_with


def computes_in_bf16(device: str) -> bool:
    """Whether bf16 is faster there than fp32; a CPU without instructions for it emulates it."""
    return device == "cuda" or any(torch.cpu.get_capabilities().get(kind) for kind in ("avx512_bf16", "amx_bf16"))


def run(config: SegmentConfig) -> Balance:
    archive = storage.archive(config.archive)
    (stage,) = stages(config)
    return run_stage(archive, stage, config)
