"""`pretrain`: features of one archive, a team that learns from them, a checkpoint."""

from collections.abc import Callable
from dataclasses import replace

from urbancross import storage, training
from urbancross.config import PretrainConfig
from urbancross.distributed.features import make_features
from urbancross.distributed.training import (
    Trained,
    count_pairs,
    is_finished,
    load_pairs,
    refuse_other_origin,
    train,
)
from urbancross.errors import ConfigError
from urbancross.models import checkpoints
from urbancross.resuming import Memory
from urbancross.runs import Balance
from urbancross.tables import digest_of, require_split


def run(config: PretrainConfig) -> Balance:
    archive = storage.archive(config.archive)
    finished = is_finished(config.out, config)
    model = checkpoints.resolve(config.model, config.width)
    images = config.train == "image"
    if images and model.base != "starter" and config.crop_px != (side := checkpoints.image_px_of(model)):
        raise ConfigError(f"--crop-px {config.crop_px}: {model.base} takes {side} px alone; give --crop-px {side}")
    if images and config.segment_encoder == "shared" and config.segments != "none":
        raise ConfigError(
            "--segment-encoder shared with --train image: segments are seen once, by the tower before it learns; "
            "give --segment-encoder separate, or --segments none"
        )
    if config.segment_encoder == "frozen" and model.base == "starter" and model.folder is None:
        raise ConfigError(
            "--segment-encoder frozen: starter has learnt nothing of segments yet; give separate or shared"
        )
    require_split(archive, config.split)
    tables = make_features(archive, model, config, config.captions, config.segments)
    made_from = {"model": model.fingerprint, "source": digest_of(archive, tables.features)}
    balance = count_pairs(archive, tables, config.split)
    if finished:
        refuse_other_origin(config.out, made_from)
        return replace(balance, written=0, done_before=balance.written)

    def work(team: training.Team, on_step: Callable[[training.Event], None], memory: Memory) -> Trained:
        pairs = load_pairs(archive, tables, config.split, images)
        encoder = checkpoints.load(model, config.device, config.dropout, config.seed)
        training.pretrain(encoder, pairs, config, team, on_step, memory)
        return Trained(encoder, model.base, None if images else model.towers, config.model_dump(), made_from)

    train(work, config, config.out, "pretrain", training.pretrain_steps(balance.written, config), made_from)
    return balance
