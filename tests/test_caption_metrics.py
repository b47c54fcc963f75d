"""BLEU-4 and CIDEr-D against values worked out by hand."""

import math

import numpy as np
import pytest
from caption_metrics import bleu, bleu_counts, cider, scores, words


def bleu_of(candidates: list[str], references: list[list[str]]) -> float:
    return float(bleu(bleu_counts(candidates, references).sum(axis=0)))


def test_words_drop_case_and_punctuation():
    assert words("A semi-circular Building, it's big.") == ["a", "semi-circular", "building", "it's", "big"]


def test_a_reference_word_for_word_is_perfect():
    assert bleu_of(["A b c, d e."], [["x y", "a b c d e"]]) == pytest.approx(1)


def test_bleu_is_the_geometric_mean_of_four_precisions():
    assert bleu_of(["a b c d e"], [["a b c d f"]]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_bleu_counts_a_repeated_word_no_more_often_than_a_reference_has_it():
    assert bleu_counts(["a a a"], [["a b", "a c a"]])[0].tolist() == [2, 0, 0, 0, 3, 2, 1, 0, 3, 3]


def test_bleu_punishes_shortness_by_the_closest_reference():
    assert bleu_of(["a b c d"], [["a b c d e", "a b c d e f g h"]]) == pytest.approx(math.exp(1 - 5 / 4))


def test_bleu_sums_over_tiles_before_it_divides():
    both = bleu_of(["a b c d e", "v w x y"], [["a b c d e"], ["v w x q"]])
    assert both == pytest.approx((8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25)


def test_nothing_in_common_and_nothing_said_are_worth_nothing():
    assert bleu_of(["a b c d", ""], [["e f g h"], ["e f"]]) == 0
    assert cider(["a b c d", ""], [["e f g h"], ["i j"]]).tolist() == [0, 0]


def test_cider_of_the_reference_itself_is_ten():
    assert cider(["a b c d", "x"], [["a b c d"], ["e f g h"]])[0] == pytest.approx(10)


def test_cider_gives_nothing_for_what_every_tile_is_told():
    assert cider(["a b c d"] * 2, [["a b c d"]] * 2).tolist() == [0, 0]


def test_cider_weighs_clips_and_punishes_length():
    """Three tiles; `a` is in two of them, `b` and `c` in one. Unigrams only: no longer run of words is shared."""
    references = [["a b"], ["a c"], ["d e"]]
    a, b = math.log(3 / 2), math.log(3)
    own, other = math.hypot(2 * a, b), math.hypot(a, b)  # of `a b`, of the candidate `b a a`
    unigrams = (a * a + b * b) / (own * other) * math.exp(-1 / (2 * 36))
    assert cider(["b a a", "", ""], references)[0] == pytest.approx(10 / 4 * unigrams)


def test_cider_is_the_mean_over_references():
    lone = cider(["a b c d", "", ""], [["a b c d"], ["x y"], ["z q"]])[0]
    assert cider(["a b c d", "", ""], [["a b c d", "k l m n"], ["x y"], ["z q"]])[0] == pytest.approx(lone / 2)


def test_intervals_hold_the_value_and_shrink_to_it_where_all_tiles_are_alike():
    found = scores(["a b c d", "e f g h", "i j k m"], [["a b c d"], ["e f g h"], ["i j k l"]])
    for score in found.values():
        low, high = score["ci95"]
        assert low <= score["value"] <= high
        assert low < high
    alike = scores(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]])
    assert np.allclose(alike["CIDEr-D"]["ci95"], 10)
