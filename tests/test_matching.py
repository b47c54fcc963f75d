import math

import pytest
import torch

from urbancross.errors import ConfigError
from urbancross.matching import balanced, neighbours, spread


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


def test_a_hub_that_every_tile_likes_best_does_not_take_them_all():
    scores = torch.eye(4) * 0.2
    scores[:, 0] += 0.5  # text 0 is the nearest of every tile
    assert scores.argmax(dim=1).tolist() == [0, 0, 0, 0]
    even = torch.full((4,), 0.25)
    assert balanced(scores, even, even, 0.02).argmax(dim=1).tolist() == [0, 1, 2, 3]
