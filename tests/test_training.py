"""Pretraining on made-up features, where the right outcome is known."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from learning import broken_at, encoder, pairs, pretrained, recall, two_processes
from torch import Tensor, nn

from urbancross import losses, resuming, training
from urbancross.config import PretrainConfig
from urbancross.errors import CheckpointError, TrainingError
from urbancross.models.dual_encoder import DualEncoder
from urbancross.pairs import Plan
from urbancross.resuming import Memory


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


@pytest.mark.parametrize("kind", ["infonce", "siglip", "hinge"])
def test_two_processes_take_the_step_that_one_takes(kind: losses.Kind):
    data = pairs()
    data = replace(data, images=data.images.double(), texts=data.texts.double(), segments=data.segments.double())

    models = [encoder().double() for _ in range(3)]

    def gradients(team: training.Team) -> list[Tensor]:
        model = models.pop()
        (step,) = data.steps(Plan(32, 0, captions=2), 1, 1, team.rank, team.world)
        bias = nn.Parameter(torch.tensor(losses.first_bias(32), dtype=torch.float64))
        loss_of = losses.contrast(kind, model.inverse_temperature(), bias, 0.2)
        terms = training.contrastive_terms(model, step, step.images, step.texts.flatten(0, 1), team, loss_of, "segment")
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


def test_texts_of_like_lengths_are_read_together_and_come_back_in_their_order():
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (10,), generator=g)
    tokens = torch.randint(1, 99, (10, 12), generator=g) * (torch.arange(12) < lengths[:, None])
    read: list[tuple[int, ...]] = []

    def tower(rows: Tensor) -> Tensor:
        read.append(tuple(rows.shape))
        return torch.stack([rows.sum(dim=1), rows[:, 0]], dim=1).float()

    found = training.like_lengths_together(tower, tokens, 0, size=4)
    assert torch.equal(found, tower(tokens))
    ordered = sorted(lengths.tolist())
    assert read[:-1] == [(4, ordered[3]), (4, ordered[7]), (2, ordered[9])]
    assert torch.equal(training.like_lengths_together(tower, tokens, None, size=4), tower(tokens))
    assert read[-2] == (10, 12)


def test_the_number_of_steps_told_is_the_number_taken():
    events: list[dict] = []
    config = PretrainConfig(archive="a", out="o", head_batch=32, head_epochs=3)
    training.pretrain(encoder(), pairs(), config, training.ALONE, events.append)
    assert len(events) == training.pretrain_steps(pairs(96), config) == 9


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


@pytest.mark.parametrize("kind", ["separate", "shared", "frozen"])
def test_what_sees_segments_learns_or_does_not(kind: str):
    before = encoder().heads["segment"].project.weight
    model = pretrained(pairs(), segment_encoder=kind, head_epochs=3)
    segment, image = (model.heads[name].project.weight for name in ("segment", "image"))
    assert torch.equal(segment, before) == (kind == "frozen")
    assert torch.equal(segment, image) == (kind == "shared")
    without = pretrained(pairs(), segment_weight=0.0, head_epochs=3)
    assert not torch.equal(image, without.heads["image"].project.weight) or kind == "frozen"
