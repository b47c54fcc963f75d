"""The ring around `urbancross.training`: a team of Ray Train workers, and the checkpoint that comes of it."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor, nn

from urbancross import runs, storage
from urbancross.config import TrainingConfig
from urbancross.distributed.session import connect
from urbancross.distributed.tables import Tally, _follow, read_aligned
from urbancross.errors import ConfigError, TrainingError, UrbanCrossError
from urbancross.models import checkpoints
from urbancross.pairs import Pairs, gather_pairs
from urbancross.progress import meter
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


def load_pairs(archive: str, captions: str, features: str, split: str, max_segments: int, images: bool) -> Pairs:
    """The pairs of a split, from the shards of an archive."""
    home = Path(archive)
    sources: dict[str, list[str] | None] = {
        "tiles": ["split", "image"] if images else ["split"],
        captions: ["captions"],
        features: ["image", "texts", "segments"],
    }
    short = {"tiles": "tiles", captions: "captions", features: "features"}
    shards = ({short[table]: rows for table, rows in read_aligned(home, sources, name).items()}
              for name in storage.shards(home / features))
    return gather_pairs(shards, split, max_segments, images)


def train(
    work: Callable[[dict[str, Any], Team, Callable[[Event], None]], Any],
    arguments: dict[str, Any],
    config: TrainingConfig,
    out: str,
    what: str,
) -> None:
    """Run `work` on a team of workers; what process 0 returns is saved as the checkpoint `out`, with its events.

    Args:
        work: (arguments, team, on_step) -> (encoder, base, towers, settings), run by every process.

    Raises:
        ConfigError: `out` exists.
        TrainingError: training stopped; the message says why.
    """
    folder = storage.local(out)
    if folder.exists():
        raise ConfigError(f"--out {out} exists already; remove it, or give another name")
    connect()
    tally = Tally.remote()

    def loop(told: dict[str, Any]) -> None:
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        events: list[Event] = []
        team = team_of_this_worker()

        def on_step(event: Event) -> None:
            events.append(event)
            if team.rank == 0:
                tally.add.remote(1)

        encoder, base, towers, settings = work(told, team, on_step)
        if team.rank == 0:
            with storage.publish_folder(folder) as temporary:
                checkpoints.save(encoder, temporary, base, towers, settings)
                (temporary / checkpoints.EVENTS).write_bytes(runs.event_lines(events))
        ray.train.report({"steps": len(events)})

    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            loop,
            train_loop_config=arguments,
            torch_config=TorchConfig(backend="nccl" if config.device == "cuda" else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=config.gpus_per_worker > 0,
                resources_per_worker={"CPU": config.cpus_per_worker}
                | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}),
            ),
            run_config=RunConfig(name=what, storage_path=scratch, failure_config=FailureConfig(max_failures=0)),
        )
        with meter(what, int(arguments["steps"]), "steps") as shown, _follow(tally, shown):
            try:
                trainer.fit()
            except Exception as error:  # Ray wraps what a worker raised; its own word is what the user needs
                raise _cause(error) from error


def _cause(error: BaseException) -> Exception:
    for inner in getattr(error, "worker_failures", {}).values():
        while inner is not None:
            if isinstance(inner, UrbanCrossError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    return TrainingError(f"a training worker stopped: {str(error).strip().splitlines()[-1]}")
