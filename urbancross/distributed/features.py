"""What frozen towers say of tiles, captions and segments: computed once, kept as a table, learned from many times."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from urbancross.segments.choice import ordered
from urbancross.segments.crops import crop
from urbancross.storage import Place
from urbancross.tables import digest_of_maker, fingerprint_of, table_of
from urbancross.tiles import decode

MOST_SLOTS = 1024  # segments per tile that a features table is looked for with


class FeatureExtractor:
    """Features of a tile, of each of its captions, and of its best segments."""

    def __init__(self, model: str, device: str, tables: "FeatureTables", choice: dict[str, Any]) -> None:
        self.encoder = checkpoints.load(checkpoints.resolve(model), device)
        self.names, self.choice = tables, choice
        self.schema = schemas.features(self.encoder.image_width, self.encoder.text_width)

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        rows = tables["tiles"].to_pylist()
        for row, told in zip(rows, tables[self.names.captions].to_pylist(), strict=True):
            row["failure"] = row["failure"] or told["failure"]
            row["captions"], row["tags"] = told["captions"], told["tags"]
        if self.names.segments is not None:
            fits = tables[self.names.ranks].to_pylist() if self.names.ranks else [None] * len(rows)
            for row, cut, ranks in zip(rows, tables[self.names.segments].to_pylist(), fits, strict=True):
                best = ordered(cut["segments"] or [], **self.choice, tile_id=row["tile_id"], ranks=ranks)
                row["segments"] = best[: self.names.max_segments]
        out = schemas.each_tile(rows, self.prepare)
        self.fill_in(out)
        return pa.Table.from_pylist(out, schema=self.schema)

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """The pixels and texts of one tile, still to be encoded."""
        if not row["captions"]:
            raise TileSkipped("no caption")
        tile, side = decode(row["image"]), self.encoder.image_px
        crops = [square(crop(tile, segment, fill=self.encoder.fill), side) for segment in row.get("segments", [])]
        cut = [truncate(text, self.encoder.reads_whole, row["tags"] or ()) for text in row["captions"]]
        texts, shortened = [text for text, _ in cut], sum(was_cut for _, was_cut in cut)
        return {"image": square(tile, side), "texts": texts, "segments": crops, "shortened": shortened}

    @torch.inference_mode()
    def fill_in(self, rows: list[dict[str, Any]]) -> None:
        """Replace pixels and texts by features, all of a batch together."""
        done = [row for row in rows if row["failure"] is None]
        seen = self._see(self.encoder.image_features, [row["image"] for row in done])
        cut = self._see(self.encoder.segment_features, [piece for row in done for piece in row["segments"]])
        read = (
            self.encoder.distinct_text_features([text for row in done for text in row["texts"]]).float().cpu().numpy()
        )
        for row, image in zip(done, seen, strict=True):
            row["image"] = image
            row["segments"], cut = list(cut[: len(row["segments"])]), cut[len(row["segments"]) :]
            row["texts"], read = list(read[: len(row["texts"])]), read[len(row["texts"]) :]

    def _see(
        self, tower: Callable[[torch.Tensor], torch.Tensor], pictures: list[np.ndarray], batch: int = 64
    ) -> np.ndarray:
        parts = [np.stack(pictures[i : i + batch]) for i in range(0, len(pictures), batch)]
        seen = [tower(torch.from_numpy(part).permute(0, 3, 1, 2)).float().cpu().numpy() for part in parts]
        return np.concatenate(seen) if seen else np.empty((0, self.encoder.image_width), np.float32)


@dataclass(frozen=True)
class FeatureTables:
    """Names of the tables behind pairs, and K, the segment slots per tile."""

    captions: str
    features: str
    max_segments: int
    segments: str | None = None
    ranks: str | None = None


def features_stage(
    archive: Place, model: checkpoints.Model, config: TrainingConfig, captions: str | None, segments: str | None
) -> Stage:
    """An archive's features for a model's towers.

    Args:
        captions, segments: variants; None takes the only one there is, and `none` leaves segments out.

    Raises:
        ConfigError: a table is missing, or the ranks are of other segments than these.
    """
    names = source_tables(archive, config, captions, segments)
    sources: dict[str, list[str] | None] = {"tiles": ["image", "split"], names.captions: ["captions", "tags"]}
    settings: dict[str, Any] = {"towers": model.towers, "max_segments": names.max_segments}
    choice: dict[str, Any] = {"order": config.order}
    if names.segments is not None:
        sources[names.segments] = ["segments"]
        if config.order == "random":
            choice["seed"] = config.seed
        if names.ranks is not None:
            sources[names.ranks] = ["scores"]
            choice["min_score"] = config.min_score
        if config.order != "quality":
            settings |= choice
    name = features_name(model, names, choice)
    arguments = {
        "model": model.place,
        "device": config.device,
        "tables": replace(names, features=name),
        "choice": choice,
    }
    schema = schemas.features(*checkpoints.feature_widths(model))
    return Stage(name, sources, schema, FeatureExtractor, arguments, settings, config.batch_tiles, tally=tally)


def features_name(model: checkpoints.Model, names: FeatureTables, choice: dict[str, Any]) -> str:
    """`features@TOWERS-CAPTIONS-SEGMENTS-K`, and what else decides which segments they are."""
    words = [model.towers, _variant(names.captions)]
    if names.segments is not None:
        words += [_variant(names.segments), str(names.max_segments)]
        if choice["order"] != "quality":
            words += [choice["order"], *([_variant(names.ranks)] if names.ranks else [])]
            words += [str(value) for key, value in choice.items() if key != "order" and value is not None]
    return f"features@{'-'.join(words)}"


def source_tables(archive: Place, config: TrainingConfig, captions: str | None, segments: str | None) -> FeatureTables:
    """The tables that features are made from; the features' own name is still open."""
    told = table_of(archive, "captions", captions, "captions")
    if segments == "none" or (segments is None and not storage.tables(archive, "segments")):
        return FeatureTables(told, "", 0)
    cut = table_of(archive, "segments", segments, "segments")
    if config.order != "caption":
        return FeatureTables(told, "", config.max_segments, cut)
    ranks = table_of(archive, "ranks", config.ranks, "ranks")
    made_from = fingerprint_of(archive, ranks)["sources"]
    for table in (cut, told):
        if made_from.get(table) != digest_of_maker(fingerprint_of(archive, table)):
            raise ConfigError(
                f"{archive / ranks} was made from other tables than {table}; say which with --ranks, or make it with: "
                f"urbancross rank --archive {archive} --segments {_variant(cut)} --captions {_variant(told)} "
                "--checkpoint ..."
            )
    return FeatureTables(told, "", config.max_segments, cut, ranks)


def _variant(table: str) -> str:
    return table.partition("@")[2]


def tally(features: pa.Table) -> dict[str, int]:
    return {"captions too long for the text tower, cut by sentence": pc.sum(features["shortened"]).as_py() or 0}


def make_features(
    archive: Place, model: checkpoints.Model, config: TrainingConfig, captions: str | None, segments: str | None
) -> FeatureTables:
    """Publish what is missing of an archive's features for a model's towers; see `features_stage`.

    A finished table of more segments in the same order serves too: its first ones are the same, and so are its tiles
    and texts for who wants none.
    """
    stage = features_stage(archive, model, config, captions, segments)
    if (larger := serves(archive, model, stage)) is not None:
        return larger
    run_stage(archive, stage, config)
    names: FeatureTables = stage.arguments["tables"]
    return names


def serves(archive: Place, model: checkpoints.Model, stage: Stage) -> FeatureTables | None:
    """The finished table of more segments that spares the work of a stage that has not begun; None where none does.

    To a stage without segments any of them is of more.
    """
    names: FeatureTables = stage.arguments["tables"]
    if storage.shards(archive / stage.output):
        return None
    there = storage.tables(archive, "features")
    if names.segments is None:
        larger = [table for table in there if table.startswith(f"{stage.output}-")]
    else:
        slots = range(names.max_segments + 1, MOST_SLOTS + 1)
        wanted = [features_name(model, replace(names, max_segments=most), stage.arguments["choice"]) for most in slots]
        larger = [table for table in wanted if table in there]
    sources = stage.maker(archive)["sources"].items()
    for table in filter(lambda table: is_whole(archive, table), larger):
        maker = fingerprint_of(archive, table)
        if sources <= maker.get("sources", {}).items() and maker.get("settings", {}).get("towers") == model.towers:
            return replace(names, features=table)
    return None


def is_whole(archive: Place, table: str) -> bool:
    """Whether a table has every shard of the archive's tiles."""
    return storage.shards(archive / table) == storage.shards(archive / "tiles")


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
