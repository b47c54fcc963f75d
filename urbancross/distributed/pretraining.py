"""`pretrain`: features of one archive, a team that learns from them, a checkpoint."""

from collections.abc import Callable
from typing import Any

from urbancross import storage, training
from urbancross.config import PretrainConfig
from urbancross.distributed.features import make_features
from urbancross.distributed.training import load_pairs, train
from urbancross.errors import ConfigError
from urbancross.models import checkpoints
from urbancross.runs import Balance


def _work(told: dict[str, Any], team: training.Team, on_step: Callable[[training.Event], None]) -> Any:
    config = PretrainConfig(**told["config"])
    images = config.train == "image"
    pairs = load_pairs(told["archive"], told["captions"], told["features"], config.split, told["max_segments"], images)
    model = checkpoints.resolve(config.model, config.width)
    encoder = checkpoints.load(model, config.device, config.dropout, config.seed)
    training.pretrain(encoder, pairs, config, team, on_step)
    return encoder, model.base, None if images else model.towers, config.model_dump()


def run(config: PretrainConfig) -> Balance:
    archive = storage.folder(config.archive, "--archive")
    if storage.local(config.out).exists():
        raise ConfigError(f"--out {config.out} exists already; remove it, or give another name")
    model = checkpoints.resolve(config.model, config.width)
    captions, features = make_features(archive, model, config, config.captions, config.segments)
    slots = config.max_segments if features.endswith(f"-{config.max_segments}") else 0
    balance = count_pairs(archive, features, config.split)
    steps = config.head_epochs * max(balance.written // config.head_batch, 1)
    if config.train == "image":
        steps += config.epochs * max(balance.written // config.image_batch, 1)
    told = {"config": config.model_dump(), "archive": str(archive), "captions": captions, "features": features,
            "max_segments": slots, "steps": steps}
    train(_work, told, config, config.out, "pretrain")
    return balance


def count_pairs(archive: Any, features: str, split: str) -> Balance:
    """Tiles of the split with pairs are `written` into the model; the others are skipped."""
    balance = Balance()
    for name in storage.shards(archive / features):
        splits = storage.read_shard(archive / "tiles" / name, ["split"])["split"].to_pylist()
        failures = storage.read_shard(archive / features / name, ["failure"])["failure"].to_pylist()
        used = sum(1 for s, failure in zip(splits, failures, strict=True) if s == split and failure is None)
        failed = sum(1 for failure in failures if failure is not None and failure.startswith("failed:"))
        balance += Balance(read=len(splits), written=used, skipped=len(splits) - used - failed, failed=failed)
    if not balance.written:
        raise ConfigError(f"{archive} has no tile of split {split} with a caption; choose another with --split")
    return balance
