"""Texts to dimensions, dimensions to points, points to settings of `adapt`."""

import random
from typing import Any

import pytest

from urbancross.config import AdaptConfig, TuneConfig
from urbancross.errors import ConfigError
from urbancross.sweep.space import Dimension, dimension, drawn, grid, settings_of, space_of

PLACES = {"checkpoint": "c", "source": "a", "target": "b", "out": "o"}


def sweep(**told: Any) -> TuneConfig:
    return TuneConfig(**PLACES, **told)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ratio=1..10", Dimension("ratio", "int", (), 1, 10)),
        ("--pace-start=0.1..0.9", Dimension("pace_start", "float", (), 0.1, 0.9)),
        ("head_lr=log:1e-5..1e-3", Dimension("head_lr", "float", (), 1e-5, 1e-3, by_log=True)),
        ("pace_start=0.1..0.9/5", Dimension("pace_start", "choice", (0.1, 0.3, 0.5, 0.7, 0.9))),
        ("head_lr=log:1e-4..1e-2/3", Dimension("head_lr", "choice", (1e-4, 1e-3, 1e-2))),
        ("ratio=log:1..10", Dimension("ratio", "int", (), 1, 10, by_log=True)),
        ("ratio=1..10/4", Dimension("ratio", "choice", (1, 4, 7, 10))),
        ("pace=none,linear,none", Dimension("pace", "choice", ("none", "linear"))),
        ("centre=true,false", Dimension("centre", "choice", (True, False))),
        ("max_segments=0..10", Dimension("max_segments", "int", (), 0, 10)),
        ("max_segments=0,2,10", Dimension("max_segments", "choice", (0, 2, 10))),
    ],
)
def test_a_text_says_where_a_setting_is_searched(text: str, wanted: Dimension):
    assert dimension(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratio", "want a setting and its values, such as ratio=1..10"),
        ("ratio=", "want a setting and its values"),
        ("ration=1,2", "ration is no setting of adapt; try ratio"),
        ("workers=1,2", "workers is the same for all trials"),
        ("ratio=0..3", "Input should be greater than 0, got '0'"),
        ("ratio=1.5,2", "Input should be a valid integer"),
        ("pace=linear,quick", "Input should be 'linear'"),
        ("ratio=5..2", "a range runs from a number to a larger one"),
        ("pace=linear..root", "a range runs from a number to a larger one"),
        ("weight_decay=log:0..1", "a range by its logarithm begins above 0"),
        ("head_lr=log:1e-5..inf", "a range runs from a number to a larger one"),
        ("lr=1,2", "lr is no setting of adapt; try discriminator_lr, head_lr"),
        ("pace_start=0.1..0.9/0", "a range has two points or more"),
        ("pace_start=0.1..2", "Input should be less than or equal to 1, got '2'"),
    ],
)
def test_a_text_that_is_no_dimension_is_told_in_one_line(text: str, message: str):
    with pytest.raises(ConfigError) as error:
        dimension(text)
    assert str(error.value).startswith(f"--space {text}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_word_a_sweep_goes_over_segments_ratio_and_pace():
    assert [dim.name for dim in space_of(sweep())] == ["max_segments", "ratio", "pace", "pace_start"]
    assert [dim.name for dim in space_of(sweep(segments="none"))] == ["ratio", "pace", "pace_start"]


def test_a_setting_is_searched_once_and_segments_are_not_counted_where_there_are_none():
    with pytest.raises(ConfigError, match="--space ratio: given twice"):
        space_of(sweep(space=["ratio=1,2", "ratio=3..5"]))
    with pytest.raises(ConfigError, match="--segments none leaves nothing to count"):
        space_of(sweep(segments="none", space=["max_segments=0..3"]))


def test_a_setting_that_means_nothing_beside_the_others_is_refused():
    with pytest.raises(ConfigError, match="--space pace_start means nothing with --pace none; search pace too"):
        space_of(sweep(pace="none", space=["pace_start=0.1..0.9"]))
    assert len(space_of(sweep(pace="linear", space=["pace_start=0.1..0.9"]))) == 1


def test_a_grid_has_every_point_once_and_no_setting_that_means_nothing_in_it():
    space = space_of(sweep(space=["pace_start=0.2,0.4", "pace=none,linear", "ratio=1,2"]))
    points = grid(space, seed=0)
    wanted = [{"ratio": r, "pace": "linear", "pace_start": s} for r in (1, 2) for s in (0.2, 0.4)]
    wanted += [{"ratio": r, "pace": "none"} for r in (1, 2)]
    assert sorted(points, key=repr) == sorted(({"pace": p.pop("pace"), **p} for p in wanted), key=repr)
    assert grid(space, seed=0) == points != grid(space, seed=1)


def test_a_grid_over_reals_is_refused_with_what_to_write():
    with pytest.raises(ConfigError, match=r"a grid wants points; write 0.1\.\.0.9/5 for five"):
        grid([dimension("pace_start=0.1..0.9")], 0)


def test_a_grid_of_too_many_points_is_refused_at_once_and_chance_needs_no_list():
    wide = dimension("ratio=1..400000000")
    with pytest.raises(ConfigError, match="--space has 400,000,000 points, at most 100,000 of a grid; give fewer"):
        grid([wide], 0)
    assert 1 <= drawn([wide], 0, 0)["ratio"] <= 400_000_000


def test_points_by_chance_lie_in_the_space_and_hang_on_seed_and_number_alone():
    space = space_of(sweep(space=["ratio=1..3", "head_lr=log:1e-5..1e-3", "pace=none,root", "pace_start=0.1..0.9"]))
    points = [drawn(space, 7, number) for number in range(200)]
    assert {point["ratio"] for point in points} == {1, 2, 3}
    assert all(1e-5 <= point["head_lr"] <= 1e-3 for point in points)
    assert 0.4 < sum(point["head_lr"] < 1e-4 for point in points) / 200 < 0.6
    assert all(("pace_start" in point) == (point["pace"] == "root") for point in points)
    random.seed(1)
    assert drawn(space, 7, 150) == points[150] != drawn(space, 8, 150)


def test_whole_numbers_by_their_logarithm_are_whole_and_as_often_small_as_large():
    dim = dimension("ratio=log:1..16")
    found = [dim.draw(random.Random(number)) for number in range(2000)]
    assert set(found) == set(dim.values or ()) == set(range(1, 17))
    assert 0.35 < sum(value <= 3 for value in found) / 2000 < 0.65


def test_what_was_said_goes_to_adapt_and_the_point_goes_over_it():
    told = settings_of(sweep(steps=50, ratio=3, search="grid", budget="7"), {"ratio": 9, "pace": "root"})
    assert told == {**PLACES, "steps": 50, "ratio": 9, "pace": "root"}
    assert AdaptConfig(**told).pace == "root"


def test_no_segment_is_no_segment_term():
    config = AdaptConfig(**settings_of(sweep(segments="sam", max_segments=3), {"max_segments": 0}))
    assert config.segments == "none"
    config = AdaptConfig(**settings_of(sweep(segments="sam"), {"max_segments": 6}))
    assert (config.segments, config.max_segments) == ("sam", 6)


def test_a_method_in_the_point_fills_in_its_own_and_not_that_of_the_flags():
    told = settings_of(sweep(method="urbancross"), {"method": "coral"})
    config = AdaptConfig(**told)
    assert (config.gap, config.pace, config.adversary_weight) == ("coral", "none", 0.0)
    told = settings_of(sweep(method="urbancross", pace="root"), {"ratio": 2})
    assert (AdaptConfig(**told).pace, AdaptConfig(**told).weights) == ("root", "similarity")
