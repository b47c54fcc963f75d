"""One trial of a sweep: a whole `adapt` by Ray Train inside an actor of Ray Tune, kept by its settings."""

import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray.tune.integration.ray_train import TuneReportCallback

from urbancross import runs, storage, verdict
from urbancross.config import AdaptConfig, TuneConfig
from urbancross.distributed import adaptation
from urbancross.distributed.session import own_error
from urbancross.distributed.sharing import is_there
from urbancross.distributed.training import DIAGNOSED, NOT_RESULT, PLACES, STOP, TIMING, UNFINISHED
from urbancross.errors import ConfigError, StoppedEarly, TrainingError
from urbancross.models import checkpoints
from urbancross.sweep import outcomes
from urbancross.sweep.outcomes import Outcome
from urbancross.sweep.space import Point, settings_of

OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|MemoryError|\bOOM\b|memory usage threshold", re.IGNORECASE)
REPORTED = {"agreement": "agreement", "recall": "target_recall"}  # objectives by their names in a diagnosis
UNSEEN = "unseen"  # reported by a trial whose node has not the folder of the sweep: the node's name
SEEN_WITHIN_S = 30.0  # a network file system may show a new folder late


def trial_of(config: TuneConfig) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """What Ray Tune runs for a point: {"number", "point"} in, the last report out; None where it was stopped early."""

    def trial(asked: dict[str, Any]) -> dict[str, Any] | None:
        home = storage.local(config.out)
        if not sees(home):
            return {UNSEEN: socket.gethostname()}
        key, wanted = keyed(config, asked["point"])
        outcome = outcomes.read(home, key)
        if outcome is None:
            try:
                outcome = _run(config, home, key, wanted)
            except StoppedEarly:  # the driver knows why, and what it was worth
                return None
            outcomes.write(home, key, outcome)
        if outcome.state == "failed":
            raise TrainingError(outcome.reason)
        return {"step": outcome.step, REPORTED["agreement"]: outcome.agreement, REPORTED["recall"]: outcome.recall}

    return trial


def sees(home: Path) -> bool:
    """Whether the driver's folder of the sweep is there on this node."""
    late = time.monotonic() + SEEN_WITHIN_S
    while not (found := (home / outcomes.SWEEP).is_file()) and time.monotonic() < late:
        time.sleep(1.0)
    return found


def keyed(config: TuneConfig, point: Point) -> tuple[str, AdaptConfig | str]:
    """The name of a point's settings, and the settings; or why they contradict each other.

    Points that mean the same have the same name; where things lie, and what does not change the result, is not in it.
    """
    told = settings_of(config, point)
    try:
        wanted = AdaptConfig(**told)
    except ValidationError as error:
        return storage.digest_text(repr(sorted(point.items()))), error.errors()[0]["msg"].removeprefix("Value error, ")
    result = wanted.model_dump(exclude={*NOT_RESULT, *PLACES, "method"})
    if wanted.segments == "none":
        del result["max_segments"]
    key = storage.digest_text(json.dumps(result, sort_keys=True))
    if "checkpoint_steps" not in config.model_fields_set:  # a driver that dies loses no more than that
        told["checkpoint_steps"] = config.evaluate_steps
    return key, AdaptConfig(**told | {"out": str(storage.local(config.out) / outcomes.TRIALS / key)})


def _run(config: TuneConfig, home: Path, key: str, wanted: AdaptConfig | str) -> Outcome:
    if isinstance(wanted, str):
        return Outcome("failed", wanted)
    began = time.monotonic()
    tables, found = _tables(wanted)
    callbacks = [TuneReportCallback()] if config.scheduler == "asha" else []
    storage.remove(stop_of(home, key))  # of a driver that died; the one of now will say so again
    try:
        adaptation.run(wanted, callbacks)
        return measured(wanted, Path(wanted.out), time.monotonic() - began, tables, found)
    except StoppedEarly:
        raise
    except Exception as error:  # whatever ends one trial does not end the others
        if isinstance(own_error(error), TrainingError | ConfigError):  # which its state would meet again
            shutil.rmtree(f"{wanted.out}{UNFINISHED}", ignore_errors=True)
        why = reason(error)
        return Outcome("failed", why, steps=wanted.steps, wall_s=time.monotonic() - began, tables=tables, found=found)


def stop_of(home: Path, key: str) -> Path:
    """The file that tells a trial to stop."""
    return home / outcomes.TRIALS / f"{key}{UNFINISHED}" / STOP


def reason(error: Exception) -> str:
    """What ended a trial, in one line."""
    own = str(own_error(error))
    return f"out of memory: {own}" if OUT_OF_MEMORY.search(f"{error} {own}") else own


def measured(config: AdaptConfig, checkpoint: Path, wall_s: float, tables: int, found: int) -> Outcome:
    """The outcome of a finished `adapt`, from what lies in its checkpoint."""
    recall = storage.read_json(checkpoint / adaptation.MEASURED, "trial")
    told = storage.read_json(checkpoint / verdict.FILE, "trial")
    timing = storage.read_json(checkpoint / TIMING, "trial").get("adapt", {"steps": 0})
    # One that was taken up at its end was not seen learning; its whole time is no less than that.
    learning_s = timing["seconds"] / timing["steps"] * config.steps if timing["steps"] > 0 else wall_s
    learning_s = learning_s if config.steps else 0.0
    events = runs.read_events(checkpoint / checkpoints.EVENTS)
    return Outcome(
        "done",
        recall=recall["mR"],
        recall_ends=tuple(recall["ci95"]["mR"]),
        agreement=told["after"],
        agreement_ends=(told["before"] + told["low"], told["before"] + told["high"]),
        gallery=recall["gallery"],
        step=config.steps,
        steps=config.steps,
        seconds=learning_s * config.workers,
        embeddings=sum(event.get("embeddings", 0) for event in events),
        wall_s=wall_s,
        tables=tables,
        found=found,
        curve=curve_of(events),
    )


def curve_of(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [
        {
            "step": event["step"],
            "recall": event["target_recall"],
            "agreement": event[DIAGNOSED],
            "source_recall": event["source_recall"],
        }
        for event in events
        if DIAGNOSED in event
    ]


def _tables(wanted: AdaptConfig) -> tuple[int, int]:
    """How many features tables a trial needs, and how many of them are there."""
    model = checkpoints.resolve(wanted.checkpoint)
    source, target = storage.archive(wanted.source, "--source"), storage.archive(wanted.target, "--target")
    there = [
        is_there(source, model, wanted, wanted.captions, wanted.segments),
        is_there(target, model, wanted, wanted.target_captions, "none"),
    ]
    return len(there), sum(there)
