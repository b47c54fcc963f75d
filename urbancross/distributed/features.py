"""What frozen towers say of tiles, captions and segments: computed once, kept as a table, learned from many times."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from urbancross import schemas
from urbancross.config import TrainingConfig
from urbancross.distributed.tables import Stage, run_stage, table_of
from urbancross.errors import TileSkipped
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import square
from urbancross.segments import crop
from urbancross.tiles import decode


class FeatureExtractor:
    """Features of a tile, of each of its captions, and of its best segments."""

    def __init__(self, model: str, captions: str, segments: str | None, max_segments: int, device: str) -> None:
        self.encoder = checkpoints.load(checkpoints.resolve(model), device)
        self.captions, self.segments, self.max_segments = captions, segments, max_segments
        self.fill = tuple(round(255 * mean) for mean in self.encoder.mean)
        self.schema = schemas.features(self.encoder.image_width, self.encoder.text_width)

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        rows = tables["tiles"].to_pylist()
        for row, told in zip(rows, tables[self.captions].to_pylist(), strict=True):
            row["failure"] = row["failure"] or told["failure"]
            row["captions"] = told["captions"]
        if self.segments is not None:
            for row, told in zip(rows, tables[self.segments].to_pylist(), strict=True):
                row["segments"] = sorted(told["segments"] or [], key=lambda segment: segment["rank"])[: self.max_segments]
        out = schemas.each_tile(rows, self.prepare)
        self.fill_in(out)
        return pa.Table.from_pylist(out, schema=self.schema)

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """The pixels and texts of one tile, still to be encoded."""
        if not row["captions"]:
            raise TileSkipped("no caption")
        tile, side = decode(row["image"]), self.encoder.image_px
        crops = [square(crop(tile, segment, fill=self.fill), side) for segment in row.get("segments", [])]
        return {"image": square(tile, side), "texts": row["captions"], "segments": crops}

    @torch.inference_mode()
    def fill_in(self, rows: list[dict[str, Any]]) -> None:
        """Replace pixels and texts by features, all of a batch together."""
        done = [row for row in rows if row["failure"] is None]
        pictures = [picture for row in done for picture in (row["image"], *row["segments"])]
        seen = self._see(pictures)
        read = self.encoder.distinct_text_features([text for row in done for text in row["texts"]]).float().cpu().numpy()
        for row in done:
            (row["image"], *row["segments"]), seen = list(seen[: 1 + len(row["segments"])]), seen[1 + len(row["segments"]) :]
            row["texts"], read = list(read[: len(row["texts"])]), read[len(row["texts"]) :]

    def _see(self, pictures: list[np.ndarray], batch: int = 64) -> np.ndarray:
        parts = [np.stack(pictures[i : i + batch]) for i in range(0, len(pictures), batch)]
        seen = [self.encoder.image_features(torch.from_numpy(part).permute(0, 3, 1, 2)).float().cpu().numpy() for part in parts]
        return np.concatenate(seen) if seen else np.empty((0, self.encoder.image_width), np.float32)


def make_features(
    archive: Path, model: checkpoints.Model, config: TrainingConfig, captions: str | None, segments: str | None
) -> tuple[str, str]:
    """Publish what is missing of a features table; returns the names of the captions and the features tables."""
    captions_table = table_of(archive, "captions", captions, "captions")
    none = segments == "none" or (segments is None and not list(archive.glob("segments@*")))
    segments_table = None if none else table_of(archive, "segments", segments, "segments")
    parts = [captions_table] + ([] if segments_table is None else [segments_table, str(config.max_segments)])
    name = f"features@{model.towers}-" + "-".join(part.partition("@")[2] or part for part in parts)
    wide = checkpoints.load(model)
    stage = Stage(
        name,
        {"tiles": ["image", "split"], captions_table: ["captions"]} | ({segments_table: ["segments"]} if segments_table else {}),
        schemas.features(wide.image_width, wide.text_width),
        FeatureExtractor,
        {
            "model": str(model.folder or model.name),
            "captions": captions_table,
            "segments": segments_table,
            "max_segments": config.max_segments,
            "device": config.device,
        },
        {"towers": model.towers, "max_segments": config.max_segments if segments_table else 0},
        config.batch_tiles,
    )
    run_stage(
        archive, stage, workers=config.workers, cpus_per_worker=config.cpus_per_worker, gpus_per_worker=config.gpus_per_worker
    )
    return captions_table, name
