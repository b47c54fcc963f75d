"""Adaptation on made-up features, where the right outcome is known."""

from collections.abc import Callable

import pytest
import torch
from learning import adapting, broken_at, encoder, pairs, pretrained, recall
from torch import Tensor, nn

from urbancross import adaptation, metrics, training
from urbancross.models.dual_encoder import DualEncoder
from urbancross.pairs import Pairs
from urbancross.resuming import Memory


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
