"""What frozen towers say of tiles, captions and segments: computed once, kept as a table, learned from many times."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from urbancross import schemas, storage
from urbancross.captions.words import truncate
from urbancross.config import AdaptConfig, PretrainConfig, TrainingConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.errors import ConfigError, TileSkipped
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import square
from urbancross.segments.crops import crop
from urbancross.storage import Place
from urbancross.tables import table_of
from urbancross.tiles import decode


class FeatureExtractor:
    """Features of a tile, of each of its captions, and of its best segments."""

    def __init__(self, model: str, captions: str, segments: str | None, max_segments: int, device: str) -> None:
        self.encoder = checkpoints.load(checkpoints.resolve(model), device)
        self.captions, self.segments, self.max_segments = captions, segments, max_segments
        red, green, blue = (round(255 * mean) for mean in self.encoder.mean)
        self.fill = (red, green, blue)
        self.schema = schemas.features(self.encoder.image_width, self.encoder.text_width)

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        rows = tables["tiles"].to_pylist()
        for row, told in zip(rows, tables[self.captions].to_pylist(), strict=True):
            row["failure"] = row["failure"] or told["failure"]
            row["captions"], row["tags"] = told["captions"], told["tags"]
        if self.segments is not None:
            for row, told in zip(rows, tables[self.segments].to_pylist(), strict=True):
                row["segments"] = sorted(told["segments"] or [], key=lambda segment: segment["rank"])[
                    : self.max_segments
                ]
        out = schemas.each_tile(rows, self.prepare)
        self.fill_in(out)
        return pa.Table.from_pylist(out, schema=self.schema)

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """The pixels and texts of one tile, still to be encoded."""
        if not row["captions"]:
            raise TileSkipped("no caption")
        tile, side = decode(row["image"]), self.encoder.image_px
        crops = [square(crop(tile, segment, fill=self.fill), side) for segment in row.get("segments", [])]
        cut = [truncate(text, self.encoder.reads_whole, row["tags"] or ()) for text in row["captions"]]
        texts, shortened = [text for text, _ in cut], sum(was_cut for _, was_cut in cut)
        return {"image": square(tile, side), "texts": texts, "segments": crops, "shortened": shortened}

    @torch.inference_mode()
    def fill_in(self, rows: list[dict[str, Any]]) -> None:
        """Replace pixels and texts by features, all of a batch together."""
        done = [row for row in rows if row["failure"] is None]
        pictures = [picture for row in done for picture in (row["image"], *row["segments"])]
        seen = self._see(pictures)
        read = (
            self.encoder.distinct_text_features([text for row in done for text in row["texts"]]).float().cpu().numpy()
        )
        for row in done:
            (row["image"], *row["segments"]), seen = (
                list(seen[: 1 + len(row["segments"])]),
                seen[1 + len(row["segments"]) :],
            )
            row["texts"], read = list(read[: len(row["texts"])]), read[len(row["texts"]) :]

    def _see(self, pictures: list[np.ndarray], batch: int = 64) -> np.ndarray:
        parts = [np.stack(pictures[i : i + batch]) for i in range(0, len(pictures), batch)]
        seen = [
            self.encoder.image_features(torch.from_numpy(part).permute(0, 3, 1, 2)).float().cpu().numpy()
            for part in parts
        ]
        return np.concatenate(seen) if seen else np.empty((0, self.encoder.image_width), np.float32)


@dataclass(frozen=True)
class FeatureTables:
    """Names of the tables that pairs are read from, and K, the segment slots per tile."""

    captions: str
    features: str
    max_segments: int


def features_stage(
    archive: Place, model: checkpoints.Model, config: TrainingConfig, captions: str | None, segments: str | None
) -> Stage:
    """An archive's features for a model's towers.

    Args:
        captions, segments: variants; None takes the only one there is, and `none` leaves segments out.
    """
    captions_table = table_of(archive, "captions", captions, "captions")
    sources: dict[str, list[str] | None] = {"tiles": ["image", "split"], captions_table: ["captions", "tags"]}
    name = f"features@{model.towers}-{captions_table.partition('@')[2]}"
    segments_table, slots = None, 0
    if segments != "none" and (segments is not None or storage.tables(archive, "segments")):
        segments_table, slots = table_of(archive, "segments", segments, "segments"), config.max_segments
        sources[segments_table] = ["segments"]
        name += f"-{segments_table.partition('@')[2]}-{slots}"
    arguments = {
        "model": str(model.folder or model.name),
        "captions": captions_table,
        "segments": segments_table,
        "max_segments": slots,
        "device": config.device,
    }
    schema = schemas.features(*checkpoints.feature_widths(model))
    settings = {"towers": model.towers, "max_segments": slots}
    return Stage(name, sources, schema, FeatureExtractor, arguments, settings, config.batch_tiles, tally=tally)


def tally(features: pa.Table) -> dict[str, int]:
    return {"captions too long for the text tower, cut by sentence": pc.sum(features["shortened"]).as_py() or 0}


def make_features(
    archive: Place, model: checkpoints.Model, config: TrainingConfig, captions: str | None, segments: str | None
) -> FeatureTables:
    """Publish what is missing of an archive's features for a model's towers; see `features_stage`."""
    stage = features_stage(archive, model, config, captions, segments)
    run_stage(archive, stage, config)
    return FeatureTables(stage.arguments["captions"], stage.output, stage.arguments["max_segments"])


def stages(config: PretrainConfig | AdaptConfig, archive: Place) -> Iterator[Stage]:
    """Every features table that a run of `pretrain` or `adapt` may have made in an archive."""
    if isinstance(config, PretrainConfig):
        model = checkpoints.resolve(config.model, config.width)
        yield features_stage(archive, model, config, config.captions, config.segments)
        return
    model = checkpoints.resolve(config.checkpoint)
    for captions, segments in ((config.captions, config.segments), (config.target_captions, "none")):
        with contextlib.suppress(ConfigError):  # a variant that the other archive has
            yield features_stage(archive, model, config, captions, segments)
