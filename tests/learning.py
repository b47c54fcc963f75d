"""Made-up features on which training and adaptation have a known outcome, and ways to run them."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from urbancross import metrics, resuming, training
from urbancross.config import AdaptConfig, PretrainConfig
from urbancross.models.dual_encoder import DualEncoder, Head
from urbancross.pairs import Pairs
from urbancross.resuming import Memory

IMAGE, TEXT, WIDTH, SLOTS = 12, 10, 8, 2


def encoder(seed: int = 0) -> DualEncoder:
    torch.manual_seed(seed)
    heads: dict[str, nn.Module] = {
        "image": Head(IMAGE, WIDTH, 0.0),
        "text": Head(TEXT, WIDTH, 0.0),
        "segment": Head(IMAGE, WIDTH, 0.0),
    }
    told: dict[str, Any] = {"image_px": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return DualEncoder(
        nn.Identity(),
        heads,
        lambda texts: torch.zeros(len(texts), 1),
        **told,
        image_width=IMAGE,
        text_width=TEXT,
        width=WIDTH,
    )


def pairs(count: int = 96, shift: float = 0.0, seed: int = 0, segments: bool = True) -> Pairs:
    """Two captions a tile; tile, texts and segments are different linear views of one hidden vector, plus a shift."""
    views = torch.Generator().manual_seed(99)  # the same views of the world in every domain
    to_image, to_text = torch.randn(4, IMAGE, generator=views), torch.randn(4, TEXT, generator=views)
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 4, generator=g)
    images = hidden @ to_image + 0.1 * torch.randn(count, IMAGE, generator=g)
    texts = (hidden @ to_text).repeat_interleave(2, dim=0) + 0.1 * torch.randn(2 * count, TEXT, generator=g)
    images[:, :3] += shift
    texts[:, :3] += shift
    crops = images[:, None].expand(-1, SLOTS, -1) + 0.1 * torch.randn(count, SLOTS, IMAGE, generator=g)
    present = torch.ones(count, SLOTS, dtype=torch.bool) if segments else torch.zeros(count, SLOTS, dtype=torch.bool)
    present[0] = False  # a tile without segments
    return Pairs(
        images, texts, torch.arange(0, 2 * count + 1, 2), torch.arange(2 * count), crops * present[..., None], present
    )


def recall(model: DualEncoder, data: Pairs) -> float:
    with torch.inference_mode():
        tiles, texts = model.heads["image"](data.images), model.heads["text"](data.texts)
    owner = np.repeat(np.arange(len(data)), 2)
    return metrics.evaluate_retrieval(tiles.numpy(), texts.numpy(), owner, bootstrap=1)["mR"]


def pretrained(
    data: Pairs, team: training.Team = training.ALONE, on_step: Callable = lambda event: None, **settings: Any
) -> DualEncoder:
    model = encoder()
    config = PretrainConfig(archive="a", out="o", head_lr=5e-3, **{"head_batch": 32, "head_epochs": 25} | settings)
    training.pretrain(model, data, config, team, on_step)
    return model


def adapting(**settings: Any) -> AdaptConfig:
    return AdaptConfig(
        checkpoint="c",
        source="s",
        target="t",
        out="o",
        **{"method": "urbancross", "target_batch": 16, "ratio": 3, "steps": 60} | settings,
    )


def two_processes(work: Callable[[training.Team], Any]) -> list[Any]:
    """Run `work` as a team of two threads that meet at every gather and average."""
    meet = threading.Barrier(2)
    board: list[Any] = [None, None]
    results: list[Any] = [None, None]

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, part: Tensor, rank: int) -> Tensor:
            ctx.rank = rank
            return torch.cat(exchange(rank, part.detach()))

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return sum(exchange(ctx.rank, gradient)).chunk(2)[ctx.rank], None  # type: ignore[union-attr]

    def exchange(rank: int, value: Any) -> list[Any]:
        board[rank] = value
        meet.wait()
        both = list(board)
        meet.wait()
        return both

    def average(rank: int) -> Callable[[list[nn.Parameter]], None]:
        def mean(parameters: list[nn.Parameter]) -> None:
            both = exchange(rank, [p.grad for p in parameters])
            grads = [None if a is None else (a + b) / 2 for a, b in zip(*both, strict=True)]
            meet.wait()
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad

        return mean

    def process(rank: int) -> None:
        results[rank] = work(training.Team(rank, 2, lambda part: Gather.apply(part, rank), average(rank)))

    threads = [threading.Thread(target=process, args=(rank,), daemon=True) for rank in range(2)]
    [thread.start() for thread in threads]
    [thread.join(timeout=60) for thread in threads]
    assert all(result is not None for result in results), "the two processes did not finish together"
    return results


class Stopped(Exception):
    """As if the process had been killed."""


def broken_at(step: int, learn: Callable[[Callable, Memory], Any], every: int = 1) -> tuple[list[dict], Any]:
    """The events and the outcome of a run that is killed after a step and goes on from what it kept."""
    kept: list[bytes] = []
    events: list[dict] = []

    def until(event: dict) -> None:
        events.append(event)
        if len(events) == step:
            raise Stopped

    with pytest.raises(Stopped):
        learn(until, Memory(None, every, lambda state: kept.append(resuming.to_bytes(state))))
    found = resuming.from_bytes(kept[-1], "state") if kept else None
    del events[len(events) - 1 - (step - 1) % every :]  # what the state does not know of comes again
    outcome = learn(events.append, Memory(found, every))
    return events, outcome


OPEN_CLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
}


def small_open_clip(folder: Path) -> Path:
    """A small model as open_clip keeps it, with random weights."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
