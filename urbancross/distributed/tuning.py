"""`tune`: settings of `adapt` searched on Ray Tune, a whole Ray Train run a trial; a report, the settings chosen."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune

from urbancross import lease, storage
from urbancross.config import TuneConfig
from urbancross.distributed.adaptation import FEWEST
from urbancross.distributed.asking import Asker, Halving, Sweep, at_work
from urbancross.distributed.resources import TRACE, require_resources
from urbancross.distributed.session import connect, interruptible
from urbancross.distributed.sharing import share
from urbancross.distributed.training import NOT_RESULT, PLACES
from urbancross.distributed.trials import trial_of
from urbancross.errors import ConfigError, TrainingError
from urbancross.models import checkpoints
from urbancross.progress import count, say
from urbancross.report import sweep as report
from urbancross.runs import Balance
from urbancross.storage import Place
from urbancross.sweep import outcomes
from urbancross.sweep.space import settings_of
from urbancross.tables import require_split

NOT_OF_SWEEP = {"budget", "concurrent", "retry_failed", "keep_checkpoints"}  # settings that a further run may change
STATE, REPORT = "ray", "report.html"
TRIAL_ID = re.compile(r"\btrial_id\W+(\w+)")  # in Ray Tune's JSON, which has JSON in its texts
ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a verb in the verb's own way
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # outcomes are kept by their settings
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # what a dead driver may forget; its outcomes it does not
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one draws boxes however quiet it is asked to be
}


def run(config: TuneConfig) -> Balance:
    """
    Raises:
        ConfigError: the space or the folder does not fit, or there is nothing to measure on.
        TrainingError: not one trial came to its end.
    """
    home = storage.local(config.out)
    config = with_whole_paths(config)
    sweep = Sweep.of(config, home)
    check(config, home)
    with interruptible(), lease.held(home):
        sweep.recall()
        before = sum(trial.is_done for trial in sweep.trials())
        if sweep.may_ask or sweep.open:
            connect()
            require_resources(config, config.concurrent)
            if not (home / outcomes.SWEEP).exists():
                storage.write_json(home / outcomes.SWEEP, {"settings": settings_that_count(config)})
            share_and_remember(config, sweep)
            work_through(config, sweep)
        return finished(config, sweep, before)


def with_whole_paths(config: TuneConfig) -> TuneConfig:
    """Paths as every process finds them, wherever it works."""
    model = checkpoints.resolve(config.checkpoint)
    places = {name: str(storage.place(getattr(config, name))) for name in ("source", "target", "out")}
    told = {name: getattr(config, name) for name in config.model_fields_set}
    return TuneConfig(**told | places | {"checkpoint": model.place})


def settings_that_count(config: TuneConfig) -> dict[str, Any]:
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={*NOT_RESULT, *PLACES, *NOT_OF_SWEEP})
    return settings


def check(config: TuneConfig, home: Path) -> None:
    """
    Raises:
        ConfigError: the folder holds another sweep, or a split lacks tiles.
    """
    settings = settings_that_count(config)
    if (home / outcomes.SWEEP).exists():
        found = storage.read_json(home / outcomes.SWEEP, "--out")["settings"]
        for key, value in settings.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"--out {home} holds a sweep with {key}={found.get(key)}, now {key}={value}; give another --out, "
                    "or remove it"
                )
    elif home.exists() and any(not path.name.startswith(".") and path.name != "runs" for path in home.iterdir()):
        raise ConfigError(f"--out {home} is there and holds no sweep; give another --out")
    else:
        storage.require_writable(home / outcomes.SWEEP, "--out")
    source, target = storage.archive(config.source, "--source"), storage.archive(config.target, "--target")
    for archive, flag in ((source, "--source"), (target, "--target")):
        require_split(archive, config.split)
        if (tiles := tiles_of(archive, "valid")) < FEWEST:
            raise ConfigError(
                f"{flag} {archive} has {tiles} tiles of split valid, {FEWEST} wanted: trials are measured on them"
            )


def tiles_of(archive: Place, split: str) -> int:
    count = 0
    for name in storage.shards(archive / "tiles"):
        rows = storage.read_shard(archive / "tiles" / name, ["split", "failure"]).to_pylist()
        count += sum(row["split"] == split and row["failure"] is None for row in rows)
    return count


def share_and_remember(config: TuneConfig, sweep: Sweep) -> None:
    """Make what trials share, and write down the first time what it was and whether it had to be made.

    Raises:
        ConfigError: the sweep began with other weights, or with tables of another content.
    """
    made = share(config, sweep.search.space)
    new = [told for told in made["tables"] if told["made"]]
    seconds = sum(told["seconds"] for told in new)
    say(f"tune: {count(len(made['tables']), 'features table')} for all trials, {len(new)} made in {seconds:.0f} s")
    place = sweep.home / outcomes.SHARED
    found = storage.json_or_none(place, "--out")
    if found is None:
        storage.write_json(place, made)
        return
    known = {(told["archive"], told["table"]): told["digest"] for told in found["tables"]}
    for told in made["tables"]:
        if known.get((told["archive"], told["table"])) != told["digest"] or found["model"] != made["model"]:
            what = "model" if found["model"] != made["model"] else f"{told['archive']}/{told['table']}"
            raise ConfigError(f"--out {sweep.home} was made from another {what}; give another --out, or remove it")


def work_through(config: TuneConfig, sweep: Sweep) -> None:
    """Ask and run until the budget is spent or the space is; a driver that died is taken up where it stood.

    Raises:
        ConfigError: a node does not see the folder of the sweep.
    """
    trainable = tune.with_resources(trial_of(config), tune.PlacementGroupFactory([{"CPU": TRACE}]))
    with quiet(), at_work(sweep):
        while sweep.may_ask or sweep.open:
            known, restored = len(sweep.told), True
            place = str(sweep.home / STATE / f"{sweep.round:03d}")
            if sweep.round and not sweep.ended and fits_together(Path(place)):
                tuner = tune.Tuner.restore(place, trainable, resume_unfinished=True)
            else:
                tuner, restored = new_tuner(config, sweep, trainable), False
            tuner.fit()
            sweep.end_round()
            if sweep.unseen:
                raise ConfigError(
                    f"--out {sweep.home} is not there on node {sweep.unseen}; give a folder that all nodes share"
                )
            if len(sweep.told) == known and not restored:  # nothing came of it; what is open stays so
                break


def new_tuner(config: TuneConfig, sweep: Sweep, trainable: Any) -> tune.Tuner:
    sweep.begin_round()
    scheduler = Halving(config.objective, config.steps, config.evaluate_steps) if config.scheduler == "asha" else None
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=Asker(),
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=directory_of,
        ),
        run_config=tune.RunConfig(
            name=f"{sweep.round:03d}",
            storage_path=str(sweep.home / STATE),
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )


def fits_together(place: Path) -> bool:
    """Whether Ray Tune can go on from a folder of its state: it is there, and the search's has the same trials.

    The files are copied one by one; a driver may die between two. What is begun anew instead loses nothing but time.
    """
    if not tune.Tuner.can_restore(str(place)):
        return False
    states, searches = (sorted(place.glob(name)) for name in ("experiment_state-*.json", "searcher-state-*.pkl"))
    if not states or not searches:
        return False
    try:
        return set(TRIAL_ID.findall(states[-1].read_text())) == set(json.loads(searches[-1].read_text())["numbers"])
    except (OSError, ValueError, KeyError):
        return False


def directory_of(trial: Any) -> str:
    return str(trial.trial_id)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ray Tune as a part of a verb: no output of its own, no logs beside ours."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    level = logging.getLogger("ray.tune").level
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.getLogger("ray.tune").setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def finished(config: TuneConfig, sweep: Sweep, before: int) -> Balance:
    """Write the chosen settings and the report, and count.

    Raises:
        TrainingError: no trial is done.
    """
    trials = sweep.trials()
    sweep.sweep_up(trials)
    states = [trial.outcome.state for trial in trials if trial.outcome is not None]
    chosen = outcomes.choose(trials, config.objective, None if config.cost == "none" else config.cost)
    if chosen is not None:
        settings = settings_of(config, chosen.point)
        flags = {name.replace("_", "-"): value for name, value in settings.items() if name not in {"out", "workers"}}
        storage.write_json(sweep.home / outcomes.CHOSEN, flags)
    storage.replace(sweep.home / REPORT, report.page_of(config, sweep.home, trials, chosen, sweep.spent_s).encode())
    shared = storage.json_or_none(sweep.home / outcomes.SHARED, "--out")
    if shared is not None:
        use_of = report.sharing_of(config, shared, trials)
        hits = ", ".join(f"{use.what} {100 * use.share:.0f} %" for use in use_of.uses if use.asked)
        say(f"tune: found, not worked out again: {hits}; towers worked {use_of.factor:.2f} times as for one trial")
    say(f"tune: {sweep.home / REPORT}")
    if chosen is None:
        why = next((trial.outcome.reason for trial in trials if trial.outcome), "the budget let none begin")
        raise TrainingError(f"not one of {len(trials)} trials came to its end ({why}); see {sweep.home / REPORT}")
    say(f"tune: chosen: trial {chosen.number}, {sweep.words(chosen)}")
    if chosen.outcome is not None and chosen.outcome.is_gain is False:
        say(f"tune: {report.NO_GAIN}")
    say(f"tune: urbancross adapt --config {sweep.home / outcomes.CHOSEN} --out ...")
    ended = [states.count(state) for state in ("done", "stopped", "failed")]
    return Balance(len(states), ended[0] - before, before, ended[1], ended[2])
