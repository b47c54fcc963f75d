"""Both training loops on made-up features, where the right outcome is known."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from urbancross import adaptation, losses, metrics, resuming, training
from urbancross.config import AdaptConfig, PretrainConfig
from urbancross.errors import CheckpointError, TrainingError
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
        checkpoint="c", source="s", target="t", out="o", **{"target_batch": 16, "ratio": 3, "steps": 60} | settings
    )


def test_pretraining_finds_pairs_that_it_has_not_seen():
    held_out = pairs(seed=1)
    assert recall(encoder(), held_out) < 0.25
    assert recall(pretrained(pairs()), held_out) > 0.8


@pytest.mark.parametrize("loss", ["siglip", "hinge"])
def test_each_loss_learns(loss: str):
    epochs = {"siglip": 80, "hinge": 25}[loss]  # siglip has to unlearn that everything belongs together
    assert recall(pretrained(pairs(), loss=loss, head_epochs=epochs), pairs(seed=1)) > 0.6


def test_the_same_seed_learns_the_same_and_another_does_not():
    one, again, other = (pretrained(pairs(), seed=seed, head_epochs=2) for seed in (3, 3, 4))
    weights = [model.heads["image"].project.weight for model in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_segments_are_learned_from_only_where_there_are_any():
    events: list[dict] = []
    model = pretrained(pairs(segments=False), on_step=events.append, head_epochs=2)
    assert "segment_text" not in events[-1]
    assert torch.equal(model.heads["segment"].project.weight, model.heads["image"].project.weight)
    with_segments: list[dict] = []
    pretrained(pairs(), on_step=with_segments.append, head_epochs=10)
    assert with_segments[-1]["segment_text"] < 0.7 * with_segments[0]["segment_text"]


def test_a_loss_that_is_not_finite_stops_training_with_a_word():
    broken = pairs()
    broken.images[5] = float("nan")
    with pytest.raises(TrainingError, match="the loss is nan; lower --head-lr"):
        pretrained(broken, head_epochs=1, head_batch=96)


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


@pytest.mark.parametrize("kind", ["infonce", "siglip", "hinge"])
def test_two_processes_take_the_step_that_one_takes(kind: losses.Kind):
    data = pairs()
    data = replace(data, images=data.images.double(), texts=data.texts.double(), segments=data.segments.double())
    rows = torch.arange(32)
    batch = training.Batch(rows, rows[:, None] * 2 + torch.arange(2))

    models = [encoder().double() for _ in range(3)]

    def gradients(team: training.Team) -> list[Tensor]:
        model = models.pop()
        part = batch.part(team.rank, team.world)
        bias = nn.Parameter(torch.tensor(losses.first_bias(32), dtype=torch.float64))
        loss_of = losses.contrast(kind, model.inverse_temperature(), bias, 0.2)
        terms = training.contrastive_terms(model, data, batch, part, data.images[part.rows], team, loss_of)
        sum(terms.values()).backward()  # type: ignore[union-attr]
        parameters = [*model.heads.parameters(), model.scale, bias]
        team.average(parameters)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    alone = gradients(training.ALONE)
    assert len(alone) == len([*encoder().heads.parameters()]) + {"infonce": 1, "siglip": 2, "hinge": 0}[kind]
    for found in two_processes(gradients):
        for ours, theirs in zip(found, alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("size", [1, 5, 16, 99])
def test_a_batch_in_chunks_has_the_gradient_of_the_whole_in_the_memory_of_one(size: int):
    tower = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 3), nn.GELU(), nn.Flatten()).double()
    pixels = torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def descend(size: int | None) -> tuple[list[Tensor], int]:
        held = 0

        def hold(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.nbytes if tensor.dim() == 4 else 0
            return tensor

        tower.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            seen = training.in_chunks(tower, pixels, size)
        (seen @ seen.T).logsumexp(dim=1).sum().backward()
        return [parameter.grad.clone() for parameter in tower.parameters()], held

    whole, all_held = descend(None)
    found, held = descend(size)
    for ours, theirs in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (held < all_held / 2) == (size < 16)


def test_closeness_to_the_target_needs_no_pairing():
    model, source, target = encoder(), pairs(), pairs(seed=5, shift=2.0)
    order = torch.randperm(len(target.texts))
    shuffled = Pairs(
        target.images, target.texts[order], target.starts, target.text_keys[order], target.segments, target.present
    )
    torch.testing.assert_close(
        adaptation.reference_closeness(model, source, target), adaptation.reference_closeness(model, source, shuffled)
    )


def test_closeness_is_the_mean_cosine_with_the_targets_pairs():
    model, source, target = encoder(), pairs(6), pairs(4, seed=5, shift=2.0)
    one_caption = Pairs(
        target.images, target.texts[::2], torch.arange(5), target.text_keys[::2], target.segments, target.present
    )
    v, u = model.heads["image"], model.heads["text"]

    def h(image: Tensor, text: Tensor) -> Tensor:
        return nn.functional.normalize(torch.cat([v(image[None])[0], u(text[None])[0]]), dim=0)

    for caption, found in enumerate(adaptation.reference_closeness(model, source, one_caption)):
        mine = h(source.images[caption // 2], source.texts[caption])
        slow = sum(mine @ h(one_caption.images[i], one_caption.texts[i]) for i in range(4)) / 4
        torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_the_curriculum_lets_the_closest_in_first_and_all_in_the_end():
    source = pairs(40)
    close = torch.linspace(0, 1, 80)
    drawn = adaptation.candidates(source, close, 40, 0.25, "linear", torch.Generator().manual_seed(0), world=2)
    everyone = adaptation.candidates(source, close, 40, 1.0, "linear", torch.Generator().manual_seed(0), world=2)
    assert len(drawn.rows) == 10
    assert len(everyone.rows) == 40
    assert set(drawn.captions.flatten().tolist()) == set(sorted(everyone.captions.flatten().tolist())[-10:])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_adversary_brings_the_domains_together_and_helps_the_target(seed: int):
    """Over seeds 0 to 5 the distance falls from 1.4 to 0.9, recall on the target grows from 0.3 to about 0.43."""
    source, target = pairs(384, seed=seed), pairs(384, seed=107 + seed, shift=3.0)

    def adapted(adversary_weight: float) -> DualEncoder:
        model = pretrained(source, head_epochs=6)
        config = adapting(
            adversary_weight=adversary_weight, head_lr=5e-4, segment_weight=0, steps=200, target_batch=32, seed=seed
        )
        adaptation.adapt(model, source, target, config, training.ALONE, lambda event: None)
        return model

    def distance(model: DualEncoder) -> float:
        with torch.inference_mode():
            here, there = (model.heads["image"](data.images).numpy() for data in (source, target))
        return metrics.proxy_a_distance(here, there)

    with_adversary, without = adapted(1.0), adapted(0.0)
    assert distance(with_adversary) < 0.85 * distance(without)
    assert recall(with_adversary, target) > recall(without, target) + 0.05
    assert recall(with_adversary, source) > 0.5


@pytest.mark.parametrize("loss", ["triplet", "infonce", "siglip", "hinge"])
@pytest.mark.parametrize("weights", ["similarity", "iwan", "uniform", "shuffled"])
def test_every_weighting_and_loss_runs_and_tells_its_curves(loss: str, weights: str):
    events: list[dict] = []
    config = adapting(loss=loss, weights=weights, steps=4, pace_start=0.5)
    adaptation.adapt(pretrained(pairs(), head_epochs=1), pairs(), pairs(seed=7), config, training.ALONE, events.append)
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    assert events[0]["pace"] == pytest.approx(0.5)
    assert events[-1]["pace"] == 1.0
    assert all(0 < event["effective_sample_size"] <= 1.0001 for event in events)
    assert events[0]["reversal"] == 0.0
    assert events[-1].get("margin") == (pytest.approx(0.5) if loss in ("triplet", "hinge") else None)


def test_the_number_of_steps_told_is_the_number_taken():
    events: list[dict] = []
    config = PretrainConfig(archive="a", out="o", head_batch=32, head_epochs=3)
    training.pretrain(encoder(), pairs(), config, training.ALONE, events.append)
    assert len(events) == training.pretrain_steps(96, config) == 9


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


@pytest.mark.parametrize("step", [2, 3, 6, 7, 11])
def test_a_pretraining_that_was_stopped_ends_with_the_bits_of_one_that_was_not(step: int):
    def learn(on_step: Callable, memory: Memory) -> DualEncoder:
        model = encoder()
        model.heads["image"].dropout.p = 0.2
        config = PretrainConfig(archive="a", out="o", head_batch=32, head_epochs=4, captions_per_tile=2, loss="siglip")
        training.pretrain(model, pairs(), config, training.ALONE, on_step, memory)
        return model

    unbroken: list[dict] = []
    whole = learn(unbroken.append, Memory())
    for every in (1, 2):
        events, found = broken_at(step, learn, every)
        assert events == unbroken
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("step", [2, 9])
def test_an_adaptation_that_was_stopped_ends_with_the_bits_of_one_that_was_not(step: int):
    def learn(on_step: Callable, memory: Memory) -> DualEncoder:
        model = pretrained(pairs(), head_epochs=2)
        config = adapting(steps=12, loss="triplet", weights="iwan", adversary_weight=1.0, pace="random")
        adaptation.adapt(model, pairs(), pairs(seed=7, shift=1.0), config, training.ALONE, on_step, memory)
        return model

    unbroken: list[dict] = []
    whole = learn(unbroken.append, Memory())
    events, found = broken_at(step, learn)
    assert events == unbroken
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters(), strict=True))


def test_a_state_of_another_model_and_a_broken_one_are_refused():
    kept: list[dict] = []
    model = encoder()
    config = PretrainConfig(archive="a", out="o", head_batch=32, head_epochs=1)
    training.pretrain(model, pairs(), config, training.ALONE, lambda event: None, Memory(None, 1, kept.append))
    kept[0]["tensors"].pop()
    with pytest.raises(CheckpointError, match="of another model"):
        training.pretrain(model, pairs(), config, training.ALONE, lambda event: None, Memory(kept[0]))
    with pytest.raises(CheckpointError, match=r"state.pt cannot be read .*remove it to start over"):
        resuming.from_bytes(b"no state", "state.pt")
