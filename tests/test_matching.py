import math

import pytest
import torch

from urbancross.errors import ConfigError
from urbancross.matching import (
    balanced,
    believed,
    hubness_corrected,
    known,
    mutual,
    nearest,
    neighbours,
    spread,
    transported,
)
from urbancross.pairs import Pairs


def test_neighbours_are_the_nearest_others_by_cosine_however_long_the_rows():
    rows = torch.tensor([[1.0, 0], [20, 1], [0, 3], [1, 4], [-1, 0]])
    near, weights = neighbours(rows, 2)
    assert near[0].tolist() == [1, 3]
    assert near[2].tolist() == [3, 1]
    torch.testing.assert_close(weights[:4].sum(dim=1), torch.ones(4))
    cosine = [1 / math.sqrt(401) * 20, 1 / math.sqrt(17)]
    assert weights[0].tolist() == pytest.approx([c / sum(cosine) for c in cosine])
    assert weights[4].sum() == 0 or near[4, 0] == 2  # nothing lies on its side
    assert neighbours(rows[:1], 3)[0].shape == (1, 0)


def test_spreading_agrees_with_the_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    scores, tiles, texts = (torch.rand(*shape, generator=generator) for shape in ((5, 4), (5, 3), (4, 3)))
    of_tiles, of_texts = neighbours(tiles, 2), neighbours(texts, 1)

    def matrix(near: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        dense = torch.zeros(len(near), len(near))
        for i, row in enumerate(near.tolist()):
            for nth, j in enumerate(row):
                dense[i, j] = weights[i, nth]
        return dense

    w, v = matrix(*of_tiles), matrix(*of_texts)
    once = 0.4 * scores + 0.6 * w @ scores @ v.T
    twice = 0.4 * scores + 0.6 * w @ once @ v.T
    torch.testing.assert_close(spread(scores, of_tiles, of_texts, 0.6, 2), twice)
    assert torch.equal(spread(scores, of_tiles, of_texts, 0.0, 9), scores)
    with pytest.raises(ConfigError, match=r"a share of 1\.0"):
        spread(scores, of_tiles, of_texts, 1.0, 1)


def test_a_balanced_plan_gives_everyone_their_share_and_follows_the_scores():
    scores = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    tile_share, text_share = torch.full((6,), 1 / 6), torch.tensor([0.4, 0.3, 0.2, 0.1])
    plan = balanced(scores, tile_share, text_share, 0.05)
    torch.testing.assert_close(plan.sum(dim=0), text_share)
    torch.testing.assert_close(plan.sum(dim=1), tile_share, atol=1e-3, rtol=0)
    ratio = plan[:2, :2]  # what shares cannot change: the odds of a 2 x 2 block
    odds = (scores[0, 0] + scores[1, 1] - scores[0, 1] - scores[1, 0]) / 0.05
    assert (ratio[0, 0] * ratio[1, 1] / (ratio[0, 1] * ratio[1, 0])).log().item() == pytest.approx(
        odds.item(), rel=1e-3
    )


@pytest.mark.parametrize("rounds", [1, 2, 21, 22, 100])
def test_a_plan_is_that_of_scaling_among_logarithms_round_by_round_also_where_scores_lie_far_apart(rounds: int):
    g = torch.Generator().manual_seed(1)
    scores, text_share = 2 * torch.rand(12, 9, generator=g) - 1, torch.rand(9, generator=g)
    scores[:, 3] = -1.0  # nobody's text
    scores[:, 5] = 1.0  # a hub
    tile_share, text_share = torch.full((12,), 1 / 12), text_share / text_share.sum()
    kernel, columns = scores.double() / 0.02, torch.zeros(9, dtype=torch.float64)
    for _ in range(rounds):
        f = tile_share.log() - torch.logsumexp(kernel + columns, dim=1)
        columns = text_share.log() - torch.logsumexp(kernel + f[:, None], dim=0)
    wanted = (kernel + f[:, None] + columns).exp().float()
    torch.testing.assert_close(balanced(scores, tile_share, text_share, 0.02, rounds), wanted, rtol=2e-3, atol=1e-7)


def test_a_hub_that_every_tile_likes_best_does_not_take_them_all():
    scores = torch.eye(4) * 0.2
    scores[:, 0] += 0.5  # text 0 is the nearest of every tile
    assert scores.argmax(dim=1).tolist() == [0, 0, 0, 0]
    even = torch.full((4,), 0.25)
    assert balanced(scores, even, even, 0.02).argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_hubness_correction_agrees_with_the_formula_written_out():
    scores = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    found = hubness_corrected(scores, 3)
    for i in range(5):
        for j in range(7):
            of_tile = sum(sorted(scores[i].tolist())[-3:]) / 3
            of_text = sum(sorted(scores[:, j].tolist())[-3:]) / 3
            assert found[i, j].item() == pytest.approx(2 * scores[i, j].item() - of_tile - of_text, abs=1e-5)


def test_only_tiles_and_texts_that_choose_each_other_are_partners():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.1, 0.2, 0.1]])
    assert mutual(scores).tolist() == [[0, 0], [1, 1]] or mutual(scores).tolist() == [[0, 0]]
    assert mutual(scores).tolist() == [[0, 0]]  # tile 1 likes text 0 best, which likes tile 0; text 1 likes tile 1


def test_a_hub_is_nobodys_partner_after_the_correction():
    scores = torch.eye(20) * 0.2
    scores[:, 0] += 0.25  # nearer to every tile than its own text, which has 0.2
    assert len(mutual(scores)) == 1
    pairing = nearest(torch.cat([scores, torch.full((2, 20), -1.0)]))
    assert pairing.chances.flatten().tolist() == [1.0] * 20 + [0.0] * 2
    assert pairing.texts.flatten().tolist()[:20] == [*range(20)]


def test_partners_are_drawn_by_their_chances_and_tiles_without_any_never():
    pairing = transported(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0.5, 0.5]), 0.5, most=2)
    torch.testing.assert_close(pairing.chances.sum(dim=1), torch.ones(2))
    drawn = [pairing.draw(2, 1, torch.Generator().manual_seed(seed)) for seed in range(400)]
    own = sum(int((batch.rows == batch.captions.flatten()).sum()) for batch in drawn) / 800
    assert own == pytest.approx(pairing.chances[0, 0].item(), abs=0.05)
    pairing.chances[1] = 0
    assert all(pairing.draw(2, 3, torch.Generator().manual_seed(seed)).rows.tolist() == [0] for seed in range(5))


def test_the_partner_a_model_believes_in_is_the_mean_of_the_others_by_its_chances():
    g = torch.Generator().manual_seed(0)
    tiles, texts = (torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1) for n in (4, 5))
    found = believed(tiles.requires_grad_(), texts, torch.tensor(7.0))
    assert not found.requires_grad
    for i, tile in enumerate(tiles.tolist()):
        chances = [math.exp(7 * sum(a * b for a, b in zip(tile, text, strict=True))) for text in texts.tolist()]
        mean = [sum(c * text[d] for c, text in zip(chances, texts.tolist(), strict=True)) for d in range(3)]
        length = math.sqrt(sum(x * x for x in mean))
        assert found[i].tolist() == pytest.approx([x / length for x in mean], abs=1e-5)


def test_known_pairs_are_a_share_of_the_true_ones():
    starts = torch.tensor([0, 2, 3, 6, 7])
    pairs = Pairs(
        torch.rand(4, 2), torch.rand(7, 2), starts, torch.arange(7), torch.zeros(4, 0, 2), torch.zeros(4, 0) > 0
    )
    pairing = known(pairs, 0.5, torch.Generator().manual_seed(0))
    assert pairing.chances.any(dim=1).sum() == 2
    everyone = known(pairs, 1.0, torch.Generator().manual_seed(0))
    for seed in range(10):
        batch = everyone.draw(4, 2, torch.Generator().manual_seed(seed))
        assert sorted(batch.rows.tolist()) == [0, 1, 2, 3]
        for row, texts in zip(batch.rows.tolist(), batch.captions.tolist(), strict=True):
            assert all(starts[row] <= text < starts[row + 1] for text in texts)
    torch.testing.assert_close(everyone.chances.sum(dim=1), torch.ones(4))
