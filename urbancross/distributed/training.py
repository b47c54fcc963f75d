"""The ring around `urbancross.training`: a team of Ray Train workers, and the checkpoint that comes of it."""

import itertools
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor, nn

from urbancross import curves, failpoints, runs, storage
from urbancross.config import MakerConfig, TrainingConfig
from urbancross.curves import Curves
from urbancross.distributed.features import FeatureTables
from urbancross.distributed.feeding import Shards
from urbancross.distributed.following import counted
from urbancross.distributed.resources import asked, require_resources
from urbancross.distributed.session import connect, own_error
from urbancross.errors import ConfigError, StoppedEarly, WorkerError
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import DualEncoder
from urbancross.progress import say
from urbancross.resuming import Memory, State, from_bytes, to_bytes
from urbancross.runs import Balance, count_failures
from urbancross.storage import Place
from urbancross.training import Event, Team


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums over processes what each says of this process's part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _average(parameters: list[nn.Parameter]) -> None:
    """Mean gradients over the team, in one message."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([parameter.grad.flatten() for parameter in with_gradient if parameter.grad is not None])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, mean in zip(with_gradient, flat.split([p.numel() for p in with_gradient]), strict=True):
        parameter.grad = mean.view_as(parameter)


def team_of_this_worker() -> Team:
    """The team that Ray Train has put this process in."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Team()
    return Team(dist.get_rank(), dist.get_world_size(), _Gather.apply, _average)


TIMING = "timing.json"  # in the checkpoint


class Clock:
    """How long the stages took, from the end of their first step on, and how much of it was waiting for data."""

    def __init__(self, feed: Shards) -> None:
        self.feed = feed
        self.stages: dict[str, dict[str, float]] = {}
        self.began, self.waited = 0.0, 0.0

    def tick(self, stage: str) -> None:
        now = time.monotonic()
        if stage not in self.stages:
            self.began, self.waited = now, self.feed.waited_s
            self.stages[stage] = {"steps": -1, "seconds": 0.0, "waited_s": 0.0}
        found = self.stages[stage]
        found["steps"] += 1
        found["seconds"], found["waited_s"] = now - self.began, self.feed.waited_s - self.waited


@dataclass(frozen=True)
class Counted:
    """Tiles of a split.

    Attributes:
        balance: those that have pairs count as written, those of other splits or without caption as skipped.
        pairs: how many have pairs, by shard.
    """

    balance: Balance
    pairs: dict[str, int]


def count_pairs(archive: Place, tables: FeatureTables, split: str) -> Counted:
    """
    Raises:
        ConfigError: there is no pair at all.
    """
    balance, pairs = Balance(), {}
    for name in storage.shards(archive / tables.features):
        splits = storage.read_shard(archive / "tiles" / name, ["split"])["split"].to_pylist()
        failures = storage.read_shard(archive / "tiles" / name, ["failure"])["failure"].to_pylist()
        missing = storage.read_shard(archive / tables.features / name, ["failure"])["failure"].to_pylist()
        used = sum(1 for found, lacks in zip(splits, missing, strict=True) if found == split and lacks is None)
        failed = count_failures(failures)["failed"]
        balance += Balance(read=len(splits), written=used, skipped=len(splits) - used - failed, failed=failed)
        pairs[name] = used
    if not balance.written:
        raise ConfigError(f"{archive} has no tile of split {split} with a caption; choose another with --split")
    return Counted(balance, pairs)


@dataclass(frozen=True)
class Trained:
    """What a team learned, and from what.

    Attributes:
        base: the base model's name.
        towers: their digest, if they did not move.
        made_from: digests of the model and the tables that training began with.
        beside: what else lies in the checkpoint, JSON files by name.
    """

    encoder: DualEncoder
    base: str
    towers: str | None
    settings: dict[str, Any]
    made_from: dict[str, str]
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)


def train(
    work: Callable[[Team, Callable[[Event], None], Memory], Trained],
    config: TrainingConfig,
    out: str,
    what: str,
    steps: int,
    made_from: dict[str, str],
    callbacks: Sequence[UserCallback] = (),
) -> None:
    """Run `work` on a team of workers; what process 0 returns is saved as the checkpoint `out`, with its events.

    A team whose worker dies is started anew, from the state that it kept last; so is a run that was killed, by running
    it again. States lie in `OUT.unfinished` until the checkpoint is there, and so do the curves for TensorBoard.

    Args:
        work: run by every process, with its team, a function that takes each step's event, and where to go on.
        callbacks: told of every diagnosis, as it is made.

    Raises:
        TrainingError: training stopped; the message says why.
        WorkerError: workers died more often than --max-failures.
    """
    folder = storage.place(out)
    home = begun(out, config, made_from)
    connect()
    require_resources(config)
    listeners: Any = list(callbacks)  # Ray types them as another class than it wants
    reports = bool(callbacks)

    def loop(told: dict[str, Any]) -> None:
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        team = team_of_this_worker()
        found = state_in(home)
        events: list[Event] = json.loads(found["events"]) if found else []
        shown = None
        if team.rank == 0:
            told["watch"].back_to.remote(len(events))
            # TensorBoard's files only grow, so on S3 they are written once, at the end.
            curves_home = home / CURVES if isinstance(home, Path) else Path(tempfile.mkdtemp())
            shown = Curves(curves_home, events, known=isinstance(home, Path))

        def on_step(event: Event) -> None:
            events.append(event)
            if shown is not None:
                shown.add(event)
                told["watch"].add.remote(1)
            failpoints.hit("training.step")
            if reports and DIAGNOSED in event and event["step"] < event["steps"]:  # nobody stops what is at its end
                ray.train.report(event)
            if reports and storage.exists(home / STOP):
                raise StoppedEarly(f"{what} was stopped at step {event['step']} of {event['steps']}")

        def keep(state: State) -> None:
            if team.rank == 0:
                storage.replace(home / STATE, to_bytes(state | {"events": json.dumps(events)}))

        trained = work(team, on_step, Memory(found, config.checkpoint_steps, keep))
        if shown is not None:
            shown.close()
            with storage.publish_folder(folder, mark=checkpoints.DESCRIPTION) as temporary:
                checkpoints.save(
                    trained.encoder, temporary, trained.base, trained.towers, trained.settings, trained.made_from
                )
                (temporary / checkpoints.EVENTS).write_bytes(runs.event_lines(events))
                for name, value in trained.beside.items():
                    storage.write_json(temporary / name, value)
                shutil.copytree(curves_home, temporary / CURVES)
            storage.remove_folder(curves_home)
            storage.remove_folder(home)
        if not reports:
            ray.train.report({"steps": len(events)})

    with tempfile.TemporaryDirectory() as scratch, counted(what, steps, "steps") as watch:
        for failures in itertools.count(1):
            # Ray would start a team anew after any error, also after one that comes again.
            once = FailureConfig(max_failures=0)
            run = RunConfig(f"{what}-{failures}", scratch, failure_config=once, callbacks=listeners)
            try:
                TorchTrainer(
                    loop,
                    train_loop_config={"watch": watch},
                    torch_config=TorchConfig(backend="nccl" if config.device == "cuda" else "gloo"),
                    scaling_config=ScalingConfig(
                        num_workers=config.workers,
                        use_gpu=config.gpus_per_worker > 0,
                        resources_per_worker=asked(config),
                    ),
                    run_config=run,
                ).fit()
                break
            except Exception as error:  # Ray wraps what a worker raised; its own word is what the user needs
                own = own_error(error)
                if not isinstance(own, WorkerError) or failures > config.max_failures:
                    raise own from error
                say(f"{what}: a worker died; the team starts anew, {failures} of {config.max_failures} times")

    events = runs.read_events(folder / checkpoints.EVENTS)
    kept = storage.read_json(folder / checkpoints.DESCRIPTION, "--out").get("query_bank")
    say(f"{what}: {'query bank: {tiles:,} tiles, {texts:,} captions'.format(**kept) if kept else 'no query bank'}")
    for line in filter(None, (curves.summary(events, key) for key in ("loss", "source_recall", "target_recall"))):
        say(f"{what}: {line}")


UNFINISHED, STATE, CURVES = ".unfinished", "state.pt", "tensorboard"
STOP = "stop"  # a file among the states: a run whose diagnoses are listened to ends at its next step
DIAGNOSED = "agreement"  # a key of events that carry a diagnosis

# What does not change the result, and the places, whose content `made_from` tells better than their names.
NOT_RESULT = {*MakerConfig.model_fields, "device", "batch_tiles", "checkpoint_steps", "max_failures", "chunk"}
PLACES = {"archive", "source", "target", "checkpoint", "model", "out"}


def is_finished(out: str, config: TrainingConfig) -> bool:
    """Whether the checkpoint `out` is there already, made with the same settings.

    Raises:
        ConfigError: something else is there, or nothing can be written there.
    """
    folder = storage.place(out)
    if not (folder.exists() if isinstance(folder, Path) else storage.exists(folder / checkpoints.DESCRIPTION)):
        storage.require_writable(folder, "--out")
        return False
    found = storage.read_json(folder / checkpoints.DESCRIPTION, f"--out {out} exists, but its")["settings"]
    refuse_other_settings(folder, found, config)
    return True


def refuse_other_settings(folder: Place, found: dict[str, Any], config: TrainingConfig) -> None:
    """
    Raises:
        ConfigError: what is there was made with other settings.
    """
    for key, value in config.model_dump(exclude=NOT_RESULT | PLACES).items():
        before = found.get(key, type(config).model_fields[key].default)  # a version without the flag made it
        if before != value:
            raise ConfigError(
                f"--out {folder} was made with {key}={before}, now {key}={value}; give another --out, or remove it"
            )


def refuse_other_origin(out: str, made_from: dict[str, str]) -> None:
    """Stop where the finished checkpoint `out` began with other weights, or with tables of another content."""
    _refuse_other_origin(
        out, storage.read_json(storage.place(out) / checkpoints.DESCRIPTION, "--out").get("made_from", {}), made_from
    )


def _refuse_other_origin(out: object, found: dict[str, str], made_from: dict[str, str]) -> None:
    for key, value in made_from.items():
        if found.get(key) != value:
            raise ConfigError(f"--out {out} was made from another {key}; give another --out, or remove it")


def begun(out: str, config: TrainingConfig, made_from: dict[str, str]) -> Place:
    """The folder of the states of an unfinished run, which says what makes them.

    Raises:
        ConfigError: an unfinished run with other settings or of other data is there.
    """
    folder = storage.place(out)
    home = folder.parent / f"{folder.name}{UNFINISHED}"
    if storage.exists(home / checkpoints.DESCRIPTION):
        found = storage.read_json(home / checkpoints.DESCRIPTION, "--out")
        refuse_other_settings(home, found["settings"], config)
        _refuse_other_origin(home, found["made_from"], made_from)
    else:
        if isinstance(home, Path):
            home.mkdir(parents=True, exist_ok=True)
        told = {"settings": config.model_dump(), "made_from": made_from}
        storage.write_json(home / checkpoints.DESCRIPTION, told)
    return home


def state_in(home: Place) -> State | None:
    """The state that an unfinished run kept last."""
    found = storage.read(home / STATE)
    return from_bytes(found[0], str(home / STATE)) if found else None
