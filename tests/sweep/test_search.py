"""A search is its history: what it was asked and told brings it back."""

import json
import pickle
from typing import Any

import pytest

from urbancross.errors import ConfigError
from urbancross.sweep.search import STARTUP, Search
from urbancross.sweep.space import Point, dimension

SPACE = [dimension(text) for text in ("max_segments=0..10", "ratio=1..10", "pace=none,linear", "pace_start=0.1..0.9")]


def worth(point: Point) -> float:
    return -((point.get("max_segments", 0) - 4) ** 2) - 0.1 * (point["ratio"] - 5) ** 2 - (point["pace"] == "none")


def go_on(search: Search, until: int) -> Search:
    """Ask and tell, one by one; every seventh point fails."""
    while len(search.asked) < until and (number := search.ask()) is not None:
        if number % 7 == 6:
            search.tell(number, "failed")
        else:
            values = [worth(search.asked[number]), float(search.asked[number]["ratio"])]
            search.tell(number, "done", values[: search.objectives])
    return search


@pytest.mark.parametrize("kind", ["random", "tpe"])
@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("broken_at", [3, STARTUP + 4])
def test_a_search_that_comes_back_asks_what_an_unbroken_one_asks(kind: Any, objectives: int, broken_at: int):
    whole = go_on(Search(SPACE, kind, 3, objectives), 24)
    broken = go_on(Search(SPACE, kind, 3, objectives), broken_at)
    back = Search(SPACE, kind, 3, objectives, most=24)
    back.restore(json.loads(json.dumps(broken.history)))
    assert go_on(back, 24).asked == whole.asked
    assert back.history == whole.history


def test_a_search_comes_back_with_a_point_still_open():
    broken = go_on(Search(SPACE, "tpe", 3), 12)
    open_ = broken.ask()
    assert open_ is not None
    back = Search(SPACE, "tpe", 3)
    back.restore(json.loads(json.dumps(broken.history)))
    for search in (broken, back):
        search.tell(open_, "done", [worth(search.asked[open_])])
    assert go_on(back, 20).asked == go_on(broken, 20).asked


def test_tpe_learns_from_what_it_is_told_and_chance_does_not():
    late: dict[str, float] = {}
    for kind in ("tpe", "random"):
        searches = [go_on(Search(SPACE, kind, seed), 60) for seed in range(3)]
        late[kind] = sum(sum(map(worth, search.asked[-20:])) for search in searches) / 60
    assert late["tpe"] > late["random"] + 3


def test_a_grid_ends_with_its_points_and_a_budget_before():
    space = [dimension("ratio=1..3"), dimension("pace=none,linear")]
    assert len(go_on(Search(space, "grid", 0), 100).asked) == 6
    short = go_on(Search(space, "grid", 0, most=4), 100)
    assert short.ask() is None
    assert short.asked == go_on(Search(space, "grid", 0), 100).asked[:4]


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_chance_and_tpe_know_when_every_point_was_tried(kind: Any):
    space = [dimension("pace=none,linear"), dimension("pace_start=0.2,0.4")]  # three points: one has no start
    search = Search(space, kind, 0)
    while not search.is_exhausted:
        number = search.ask()
        assert number is not None
        assert number < 100
        search.tell(number, "done", [0.5])
    assert len({repr(sorted(point.items())) for point in search.asked}) == 3
    assert Search([dimension("pace_start=0.2..0.4")], kind, 0).end is None


def test_a_larger_budget_goes_on_where_the_smaller_one_ended():
    small = go_on(Search(SPACE, "tpe", 1, most=12), 100)
    large = Search(SPACE, "tpe", 1, most=20)
    large.restore(small.history)
    assert go_on(large, 100).asked == go_on(Search(SPACE, "tpe", 1, most=20), 100).asked


def test_points_that_were_stopped_early_are_told_too():
    search = Search(SPACE, "tpe", 0)
    for number in range(STARTUP + 3):
        assert search.ask() == number
        search.tell(number, "stopped", [float(number)], step=50)
    back = Search(SPACE, "tpe", 0)
    back.restore(search.history)
    assert back.ask() == search.ask()
    assert back.asked == search.asked


def test_a_point_that_failed_and_was_tried_again_is_learnt_from():
    def told(again: bool) -> Search:
        search = Search([dimension("ratio=log:1..64"), dimension("pace_start=0.1..0.9")], "tpe", 0)
        for number in range(STARTUP + 2):
            search.ask()
            search.tell(number, "failed")
        for number in range(STARTUP + 2):
            if again:
                search.tell(number, "done", [float(search.asked[number]["ratio"])])
        return search

    search, unaware = told(again=True), told(again=False)
    back = Search(search.space, "tpe", 0)
    back.restore(json.loads(json.dumps(search.history)))
    for each in (search, back, unaware):
        for _ in range(6):
            number = each.ask()
            each.tell(number, "done", [float(each.asked[number]["ratio"])])
    assert all(isinstance(point["ratio"], int) for point in search.asked)
    assert back.asked == search.asked
    assert search.asked[: STARTUP + 2] == unaware.asked[: STARTUP + 2]
    assert search.asked[STARTUP + 2 :] != unaware.asked[STARTUP + 2 :]


def test_a_history_of_another_search_is_refused():
    history = go_on(Search(SPACE, "random", 3), 2).history
    with pytest.raises(ConfigError, match="point 0 of the search was"):
        Search(SPACE, "random", 4).restore(history)


def test_a_search_can_be_sent_to_another_process():
    search = go_on(Search(SPACE, "tpe", 3), 5)
    assert pickle.loads(pickle.dumps(search)).asked == search.asked
