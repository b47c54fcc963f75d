"""`adapt`: features of both archives by the checkpoint's towers, a team that carries its heads over, a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from ray.train import UserCallback

from urbancross import adaptation, diagnostics, storage, training, verdict
from urbancross.config import AdaptConfig
from urbancross.distributed.features import FeatureTables, make_features
from urbancross.distributed.feeding import Shards, Windows, load_pairs, some_shards
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
from urbancross.pairs import Pairs
from urbancross.progress import say
from urbancross.resuming import Memory
from urbancross.runs import Balance
from urbancross.storage import Place
from urbancross.tables import digest_of, require_split

FEWEST, MOST = 8, 4096  # tiles that were kept back, for a diagnosis
MEASURED = "valid.json"  # in the checkpoint: recall on the target's kept-back pairs, told and not used


def run(config: AdaptConfig, callbacks: Sequence[UserCallback] = ()) -> Balance:
    """
    Args:
        callbacks: of Ray Train, told of every diagnosis.
    """
    source, target = storage.archive(config.source, "--source"), storage.archive(config.target, "--target")
    finished = is_finished(config.out, config)
    model = checkpoints.resolve(config.checkpoint)
    for archive in (source, target):
        require_split(archive, config.split)
    of_source = make_features(source, model, config, config.captions, config.segments)
    of_target = make_features(target, model, config, config.target_captions, "none")
    made_from = {
        "model": model.fingerprint,
        "source": digest_of(source, of_source.features),
        "target": digest_of(target, of_target.features),
    }
    counted = count_pairs(source, of_source, config.split)
    feed = Shards(source, of_source, config.split, Windows.of(counted.pairs, config.seed))
    counted_target = count_pairs(target, of_target, config.split)
    balance = counted.balance + counted_target.balance
    some = some_shards(counted_target.pairs, config.target_tiles, config.seed)
    if finished:
        refuse_other_origin(config.out, made_from)
        return replace(balance, written=0, done_before=balance.written)

    def kept_back() -> tuple[Pairs, Pairs] | None:
        def held(archive: Place, tables: FeatureTables) -> Pairs:
            counts = count_pairs(archive, tables, "valid").pairs
            some_of = some_shards(counts, MOST, seed=0)  # the same for every run
            return load_pairs(archive, tables, "valid", names=some_of)

        try:
            both = held(source, of_source), held(target, of_target)
        except ConfigError:  # no tile of that split: no diagnosis
            return None
        return both if min(map(len, both)) >= FEWEST else None

    def work(team: training.Team, on_step: Callable[[training.Event], None], memory: Memory) -> Trained:
        target_pairs = load_pairs(target, of_target, config.split, names=some)
        encoder = checkpoints.load(model, config.device)
        held = kept_back()
        before = verdict.agreement(encoder, held[1]) if held else None
        clock = Clock(feed)

        def after_step(event: training.Event) -> None:
            clock.tick(event["stage"])
            on_step(event)

        adaptation.adapt(encoder, feed, target_pairs, config, team, after_step, memory, held)
        if encoder.bank is not None and team.rank == 0:
            wanted = max(len(encoder.bank.tiles), len(encoder.bank.texts))
            sample = training.embedded_sample(encoder, target_pairs, wanted, config.seed)
            enough = len(sample[0]) >= min(len(encoder.bank.tiles), query_bank.FEWEST)
            encoder.bank = query_bank.QueryBank.of(*sample) if enough else None
        told: dict[str, dict[str, Any]] = {TIMING: clock.stages}
        if held and before is not None and team.rank == 0:
            told[MEASURED] = diagnostics.measure(encoder, held[1], config.seed)
            told[verdict.FILE] = asdict(verdict.judge(before, verdict.agreement(encoder, held[1]), seed=config.seed))
        return Trained(encoder, model.base, model.towers, config.model_dump(), made_from, told)

    train(work, config, config.out, "adapt", config.steps, made_from, callbacks)
    found = storage.place(config.out) / verdict.FILE
    say(
        f"adapt: {verdict.Verdict(**storage.read_json(found, '--out'))}"
        if storage.exists(found)
        else f"adapt: no verdict, for want of {FEWEST} tiles of split valid in both archives"
    )
    return balance
