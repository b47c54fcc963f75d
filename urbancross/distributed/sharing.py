"""What all trials of a sweep need and none changes: features of both archives, made once, before the first of them."""

import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from urbancross import storage
from urbancross.config import AdaptConfig, TuneConfig
from urbancross.distributed.adaptation import FEWEST
from urbancross.distributed.features import FeatureTables, features_stage, is_whole, make_features, serves
from urbancross.errors import ConfigError
from urbancross.models import checkpoints
from urbancross.storage import Place
from urbancross.sweep.space import SEGMENTS, Dimension, settings_of
from urbancross.tables import digest_of

DECIDES = ("captions", "target_captions", "segments", "order", "ranks", "min_score")  # what the features hold
MASK = ".rank"  # a leaf of a segment, small beside its mask


def variants(config: TuneConfig, space: Sequence[Dimension]) -> list[AdaptConfig]:
    """Settings whose features serve every trial: each choice of what decides them, with the most segments.

    A threshold or a seed that is searched as a range cannot be made ahead; its trials make their own.
    """
    decides = [*DECIDES, *(["seed"] if config.order == "random" or _may_be(space, "order", "random") else [])]
    axes = [[(dim.name, value) for value in dim.values] for dim in space if dim.name in decides and dim.values]
    slots = next((max(dim.values) for dim in space if dim.name == SEGMENTS and dim.values), None)
    found = []
    for point in itertools.product(*axes):
        told = settings_of(config, dict(point) | ({} if slots is None else {SEGMENTS: slots}))
        with suppress(ValidationError):  # a threshold without its order, for one: no trial has it either
            found.append(AdaptConfig(**told))
    return found


def _may_be(space: Sequence[Dimension], name: str, value: Any) -> bool:
    return any(dim.name == name and value in (dim.values or ()) for dim in space)


def share(config: TuneConfig, space: Sequence[Dimension]) -> dict[str, Any]:
    """Make the features that trials share, and count them.

    Returns:
        {"model": its fingerprint, "tables": [{"archive", "table", "digest", "tiles", "texts", "crops", "made",
        "seconds"}], "tiles", "texts": of one trial, "masks": segments of one trial, by how many are taken of a tile}.

    Raises:
        ConfigError: a table is missing, segments are to be counted and there are none, or there is too little to
            measure on.
    """
    model = checkpoints.resolve(config.checkpoint)
    source, target = storage.archive(config.source, "--source"), storage.archive(config.target, "--target")
    told: dict[str, dict[str, Any]] = {}
    counts: list[dict[str, Any]] = []
    for wanted in variants(config, space):
        of_source = _shared(source, model, wanted, wanted.captions, wanted.segments, told)
        of_target = _shared(target, model, wanted, wanted.target_captions, "none", told)
        if of_source.segments is None and wanted.segments != "none" and any(dim.name == SEGMENTS for dim in space):
            raise ConfigError(
                f"{source} has no segments to count; make some with urbancross segment, or give --segments none or a "
                "--space without max_segments"
            )
        a, b = _counts(source, of_source), _counts(target, of_target)
        for archive, flag, found in ((source, "--source", a), (target, "--target", b)):
            if found["valid"] < FEWEST:
                raise ConfigError(
                    f"{flag} {archive} has {found['valid']} tiles of split valid with a caption, {FEWEST} wanted: "
                    "trials are measured on them"
                )
        counts.append({key: a[key] + b[key] for key in ("tiles", "texts")} | {"masks": a["masks"]})
    if not counts:
        raise ConfigError("no point of --space gives settings that adapt takes together; see urbancross adapt --help")
    most = max(counts, key=lambda each: each["masks"][-1])
    return {"model": model.fingerprint, "tables": list(told.values()), **most}


def _shared(
    archive: Place,
    model: checkpoints.Model,
    wanted: AdaptConfig,
    captions: str | None,
    segments: str | None,
    told: dict[str, dict[str, Any]],
) -> FeatureTables:
    there = is_there(archive, model, wanted, captions, segments)
    began = time.monotonic()
    names = make_features(archive, model, wanted, captions, segments)
    name = f"{archive}/{names.features}"
    if name not in told:
        counted = _counts(archive, names)
        told[name] = {
            "archive": archive.name,
            "table": names.features,
            "tiles": counted["tiles"],
            "texts": counted["texts"],
            "crops": counted["masks"][-1],
            "digest": digest_of(archive, names.features),
            "made": not there,
            "seconds": 0.0 if there else round(time.monotonic() - began, 1),
        }
    return names


def is_there(
    archive: Place, model: checkpoints.Model, config: AdaptConfig, captions: str | None, segments: str | None
) -> bool:
    """Whether the features that these settings want need not be made."""
    stage = features_stage(archive, model, config, captions, segments)
    return is_whole(archive, stage.output) or serves(archive, model, stage) is not None


def _counts(archive: Place, names: FeatureTables) -> dict[str, Any]:
    """Tiles that have features, those of split valid, their texts, and their segments by how many at most are taken of
    a tile: [K + 1]."""
    tiles, valid, texts, masks = 0, 0, 0, np.zeros(names.max_segments + 1, np.int64)
    for shard in storage.shards(archive / names.features):
        failures = storage.read_shard(archive / names.features / shard, ["failure"])["failure"]
        use = failures.is_null()
        lines = storage.read_shard(archive / names.captions / shard, ["captions"])["captions"]
        tiles += pc.sum(use).as_py() or 0
        splits = storage.read_shard(archive / "tiles" / shard, ["split"])["split"]
        valid += pc.sum(pc.and_(use, pc.fill_null(pc.equal(splits, "valid"), False))).as_py() or 0
        texts += pc.sum(pc.list_value_length(lines).filter(use)).as_py() or 0
        if names.segments is not None:
            each = _segments_of_each(archive / names.segments / shard)[use.to_numpy()]
            masks += np.array([np.minimum(each, most).sum() for most in range(len(masks))])
    return {"tiles": tiles, "valid": valid, "texts": texts, "masks": masks.tolist()}


def _segments_of_each(shard: Place) -> np.ndarray:
    """How many segments each tile of a shard has, without reading their masks."""
    with storage.parquet(shard) as file:
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        leaf = next(path for path in paths if path.startswith("segments.") and path.endswith(MASK))
        column: pa.ChunkedArray = file.read(columns=[leaf])["segments"]
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), np.int64)
