"""`pretrain`: features of one archive, a team that learns from them, a checkpoint."""

from collections.abc import Callable
from dataclasses import replace

import torch

from urbancross import storage, training
from urbancross.config import PretrainConfig
from urbancross.distributed.features import make_features
from urbancross.distributed.feeding import Shards, Windows, samples
from urbancross.distributed.training import (
    TIMING,
    Clock,
    Trained,
    count_pairs,
    is_finished,
    refuse_other_origin,
    train,
)
from urbancross.errors import ConfigError
from urbancross.models import checkpoints, query_bank
from urbancross.progress import say
from urbancross.resuming import Memory
from urbancross.runs import Balance
from urbancross.tables import digest_of, require_split


def run(config: PretrainConfig) -> Balance:
    archive = storage.archive(config.archive)
    finished = is_finished(config.out, config)
    model = checkpoints.resolve(config.model, config.width)
    images = config.train != "heads"
    if images and model.base != "starter" and config.crop_px != (side := checkpoints.image_px_of(model)):
        raise ConfigError(f"--crop-px {config.crop_px}: {model.base} takes {side} px alone; give --crop-px {side}")
    if images and config.segment_encoder == "shared" and config.segments != "none":
        raise ConfigError(
            f"--segment-encoder shared with --train {config.train}: segments are seen once, by the tower before it "
            "learns; give --segment-encoder separate, or --segments none"
        )
    if config.segment_encoder == "frozen" and model.base == "starter" and model.folder is None:
        raise ConfigError(
            "--segment-encoder frozen: starter has learnt nothing of segments yet; give separate or shared"
        )
    require_split(archive, config.split)
    tables = make_features(archive, model, config, config.captions, config.segments)
    made_from = {"model": model.fingerprint, "source": digest_of(archive, tables.features)}
    counted = count_pairs(archive, tables, config.split)
    balance, feed = counted.balance, Shards(archive, tables, config.split, Windows.of(counted.pairs, config.seed))
    if finished:
        refuse_other_origin(config.out, made_from)
        return replace(balance, written=0, done_before=balance.written)

    bank = bank_of(config, model, balance.written)

    def work(team: training.Team, on_step: Callable[[training.Event], None], memory: Memory) -> Trained:
        encoder = checkpoints.load(model, config.device, config.dropout, config.seed)
        encoder.bank = None  # of other weights
        clock = Clock(feed)

        def after_step(event: training.Event) -> None:
            clock.tick(event["stage"])
            on_step(event)

        training.pretrain(encoder, feed, config, team, after_step, memory)
        if bank and team.rank == 0:
            learnt = {"images": images, "written": config.train == "both"}
            parts = [
                training.embedded_sample(encoder, pairs, count, config.seed, name)
                for name, pairs, count in samples(
                    archive, tables, config.split, counted.pairs, bank, config.seed, **learnt
                )
            ]
            encoder.bank = query_bank.QueryBank.of(*(torch.cat(rows)[:bank] for rows in zip(*parts, strict=True)))
        towers = None if images else model.towers
        return Trained(encoder, model.base, towers, config.model_dump(), made_from, {TIMING: clock.stages})

    train(work, config, config.out, "pretrain", training.pretrain_steps(feed, config), made_from)
    for stage, told in storage.read_json(storage.place(config.out) / TIMING, "--out").items():
        share = told["waited_s"] / max(told["seconds"], 1e-9)
        say(f"pretrain: {stage}: {told['seconds']:.1f} s after the first step, {100 * share:.1f} % waiting for data")
    return balance


def bank_of(config: PretrainConfig, model: checkpoints.Model, tiles: int) -> int:
    """How many tiles, and captions, the query bank of a model that learns from so many tiles should have."""
    if config.query_bank is not None:
        return config.query_bank
    if model.bank:
        return max(model.bank)
    return query_bank.SIZE if model.base == "starter" and tiles >= query_bank.FEWEST else 0
