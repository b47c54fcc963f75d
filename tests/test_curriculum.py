import math

import pytest
import torch

from urbancross.curriculum import (
    closeness,
    effective_sample_size,
    margin,
    pace,
    pair_embedding,
    reversal_strength,
    select,
    source_weights,
)
from urbancross.errors import ConfigError, TrainingError

PACES = ["linear", "root", "step", "none", "anti", "random"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(n: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=seeded(seed))


def test_a_pair_embedding_is_a_unit_vector_outside_the_graph():
    image, text = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 1.0]])
    h = pair_embedding(image, text)
    torch.testing.assert_close(h, torch.tensor([[1.0, 0, 0, 1]]) / math.sqrt(2))
    assert not h.requires_grad


def test_closeness_is_the_mean_similarity_to_every_target_pair():
    source = pair_embedding(torch.randn(4, 3, generator=seeded()), torch.randn(4, 3, generator=seeded(1)))
    target = pair_embedding(torch.randn(5, 3, generator=seeded(2)), torch.randn(5, 3, generator=seeded(3)))
    slow = [sum(float(t @ s) for t in target) / len(target) for s in source]
    torch.testing.assert_close(closeness(source, target.mean(dim=0)), torch.tensor(slow))


@pytest.mark.parametrize("kind", PACES)
def test_every_pace_rises_from_start_to_all_and_stays_inside(kind):
    shares = [pace(i / 100, kind, start=0.3) for i in range(-20, 121)]
    assert shares == sorted(shares)
    assert shares[0] == (1 if kind == "none" else pytest.approx(0.3))
    assert shares[120] == shares[-1] == 1  # progress 1 and beyond
    assert all(0.3 <= share <= 1 for share in shares)


def test_paces_agree_with_values_by_hand():
    assert pace(0.5, "linear", start=0.2) == pytest.approx(0.6)
    assert pace(0.5, "anti", start=0.2) == pace(0.5, "random", start=0.2) == pytest.approx(0.6)
    assert pace(0.5, "root", start=0.6) == pytest.approx(math.sqrt(0.5 * 0.64 + 0.36))
    assert pace(0.1, "none") == 1


def test_step_has_equal_stages_and_the_last_one_takes_all():
    stages = [pace(p, "step", start=0.2, steps=5) for p in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert stages == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert pace(0.19, "step", start=0.2) == pace(0.0, "step", start=0.2)
    assert pace(0.58, "step", start=0.02, steps=50) > pace(0.57, "step", start=0.02, steps=50)  # 0.58 * 50 < 29
    assert pace(0.0, "step", start=0.2, steps=1) == 1


def test_select_takes_the_closest_and_anti_the_farthest():
    a = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert select(a, 0.5).tolist() == [1, 3]
    assert select(a, 0.5, "anti").tolist() == [0, 2]


def test_select_rounds_up_but_not_for_float_dust():
    assert [len(select(scores(10), r)) for r in (0.1, 0.11, 0.0, 1e-9, 0.7)] == [1, 2, 0, 1, 7]
    assert len(select(scores(100), 0.07)) == 7  # 0.07 * 100 is 7.000000000000001
    assert len(select(torch.zeros(0), 0.5)) == 0


def test_ties_go_to_the_earlier_row():
    assert select(torch.ones(100), 0.03).tolist() == [0, 1, 2]
    assert select(torch.ones(100), 0.03, "anti").tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", PACES)
def test_easy_pairs_stay_when_harder_ones_join(kind):
    a = torch.cat([scores(), scores()])  # each closeness twice
    taken: set[int] = set()
    for i in range(21):
        now = set(select(a, i / 20, kind, seeded()).tolist())
        assert taken <= now
        taken = now
    assert taken == set(range(40))


@pytest.mark.parametrize("kind", PACES)
def test_the_whole_share_changes_nothing(kind):
    assert torch.equal(select(scores(), 1.0, kind, seeded()), torch.arange(20))


def test_select_does_not_depend_on_the_order_of_rows():
    a, order = scores(), torch.randperm(20, generator=seeded(1))
    for kind in ("linear", "anti"):
        shuffled = order[select(a[order], 0.4, kind)]
        assert set(shuffled.tolist()) == set(select(a, 0.4, kind).tolist())


def test_random_is_another_subset_of_the_same_size_repeated_by_its_seed():
    a = scores()
    first, again, other = (select(a, 0.4, "random", seeded(s)).tolist() for s in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == len(other) == len(select(a, 0.4))
    assert first != select(a, 0.4).tolist()


def test_select_refuses_a_closeness_that_is_not_finite():
    with pytest.raises(TrainingError, match="closeness of source pair 1 is nan"):
        select(torch.tensor([0.1, float("nan")]), 0.5)


def test_weights_are_the_softmax_of_the_standardised_closeness():
    a = torch.tensor([0.1, 0.4, 0.2, 0.7], dtype=torch.float64)
    b = (a - a.mean()) / a.std(correction=0)
    torch.testing.assert_close(source_weights(a, "similarity"), 4 * b.softmax(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(source_weights(a, "similarity", 2.0), 4 * (b / 2).softmax(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["similarity", "shuffled", "iwan", "uniform"])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_weights_keep_mean_one_and_bounds_together_and_have_no_gradient(kind, temperature):
    a = scores(200).requires_grad_()
    logits = (100 * scores(200, seed=1) - 50).requires_grad_()
    w = source_weights(a, kind, temperature, w_min=0.1, w_max=3.0, logits=logits, generator=seeded())
    assert not w.requires_grad
    assert w.mean().item() == pytest.approx(1, abs=1e-5)
    assert w.min() >= 0.1 - 1e-6
    assert w.max() <= 3.0 + 1e-6


def test_a_bound_keeps_order_and_ties_and_the_ratios_between_bounds():
    a = torch.linspace(0, 1, 50, dtype=torch.float64)
    free = source_weights(a, "similarity", 0.5, w_min=1e-9, w_max=1e9)
    bounded = source_weights(a, "similarity", 0.5, w_max=2.0)
    inside = (bounded > 0.0501) & (bounded < 1.9999)
    ratio = bounded[inside] / free[inside]
    assert 5 < inside.sum() < 50
    assert (bounded.diff() >= 0).all()
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_ties_give_uniform_weights(n):
    assert torch.equal(source_weights(torch.full((n,), 0.1), "similarity", 0.01), torch.ones(n))
    assert len(source_weights(torch.zeros(0), "similarity")) == 0


def test_weights_follow_the_rows():
    a, order = scores(), torch.randperm(20, generator=seeded(1))
    torch.testing.assert_close(source_weights(a, "similarity")[order], source_weights(a[order], "similarity"))


def test_iwan_weighs_in_proportion_to_what_passes_for_target():
    logits = torch.tensor([2.0, 0.0, -1.0])
    wanted = 1 - torch.sigmoid(logits)
    found = source_weights(torch.zeros(3), "iwan", logits=logits)
    torch.testing.assert_close(found, wanted / wanted.mean())
    saturated = source_weights(torch.zeros(2), "iwan", logits=torch.tensor([500.0, 500.0]))
    torch.testing.assert_close(saturated, torch.ones(2))


def test_shuffled_deals_out_the_same_weights_to_other_pairs():
    a = scores()
    plain, shuffled = source_weights(a, "similarity"), source_weights(a, "shuffled", generator=seeded())
    assert torch.equal(plain.sort().values, shuffled.sort().values)
    assert not torch.equal(plain, shuffled)
    assert torch.equal(shuffled, source_weights(a, "shuffled", generator=seeded()))


def test_what_cannot_be_weighed_is_refused():
    a = scores(3)
    with pytest.raises(ConfigError, match="logit"):
        source_weights(a, "iwan")
    with pytest.raises(ConfigError, match="generator"):
        source_weights(a, "shuffled")
    with pytest.raises(ConfigError, match="generator"):
        select(a, 0.5, "random")
    with pytest.raises(ConfigError, match="w_min"):
        source_weights(a, "similarity", w_min=0)
    with pytest.raises(ConfigError, match="unknown kind 'best'"):
        source_weights(a, "best")
    with pytest.raises(ConfigError, match="unknown kind 'fast'"):
        pace(0.5, "fast")
    with pytest.raises(ConfigError, match="fraction"):
        select(a, 1.5)
    with pytest.raises(TrainingError, match="source pair 0"):
        source_weights(torch.tensor([float("inf"), 0.0]), "similarity")


def test_effective_sample_size_counts_equal_weights_fully_and_a_lone_one_as_one():
    assert effective_sample_size(torch.full((8,), 0.25)) == pytest.approx(8)
    assert effective_sample_size(torch.tensor([0.0, 3.0, 0.0])) == pytest.approx(1)
    assert effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(1.6)
    assert effective_sample_size(torch.zeros(3)) == 0


def test_reversal_strength_starts_at_nothing_and_ends_near_its_maximum():
    assert reversal_strength(0.0) == reversal_strength(-1.0) == 0
    assert reversal_strength(0.1, maximum=2.0) == pytest.approx(2 * math.tanh(0.5))  # the same curve, written otherwise
    assert 0.9999 < reversal_strength(1.0) == reversal_strength(7.0) < 1


def test_margin_runs_straight_from_start_to_end():
    assert [margin(p) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([0.2, 0.2, 0.35, 0.5, 0.5])
