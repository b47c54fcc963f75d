"""The page of a sweep, from outcomes made by hand: what it shows, and that it needs nothing else."""

import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from urbancross import storage
from urbancross.config import TuneConfig
from urbancross.report import sweep as report
from urbancross.report.sweep_figures import binned, rank_correlation
from urbancross.sweep import outcomes
from urbancross.sweep.outcomes import Outcome, Trial, choose, level
from urbancross.sweep.space import drawn, space_of

NASTY = "<script>alert('x')</script> & \"quotes\""
SHARED = {
    "model": "m",
    "tiles": 100,
    "texts": 300,
    "masks": [0, 80, 150, 200],
    "tables": [
        {"archive": "a", "table": "features@x", "digest": "", "made": True, "seconds": 9.0}
        | {"tiles": 60, "texts": 200, "crops": 200},
        {"archive": "b", "table": "features@y", "digest": "", "made": False, "seconds": 0.0}
        | {"tiles": 40, "texts": 100, "crops": 0},
    ],
}


def sweep(**told: Any) -> TuneConfig:
    return TuneConfig(checkpoint="c", source="north", target="south", out="o", **told)


def some_trials(config: TuneConfig, count: int = 12) -> list[Trial]:
    rng, trials = random.Random(0), []
    for number in range(count):
        point = drawn(space_of(config), 0, number)
        agreement = 0.4 + 0.02 * point.get("max_segments", 0) + rng.gauss(0, 0.01)
        outcome = Outcome(
            "done",
            recall=agreement / 3,
            recall_ends=(agreement / 3 - 0.02, agreement / 3 + 0.02),
            agreement=agreement,
            agreement_ends=(agreement - 0.01, agreement + 0.01),
            seconds=3.0 + number,
            embeddings=1000 * (number + 1),
            tables=2,
            found=2,
            curve=[{"step": 0, "recall": 0.1, "agreement": 0.35, "source_recall": 0.5}],
        )
        trials.append(Trial(number, point, f"k{number}", outcome))
    return trials


def page(home: Path, config: TuneConfig, trials: list[Trial]) -> str:
    storage.write_json(home / outcomes.SHARED, SHARED)
    chosen = choose(trials, config.objective, None)
    if chosen:
        storage.write_json(home / outcomes.CHOSEN, chosen.point)
    return report.page_of(config, home, trials, chosen, 120.0)


class Names(HTMLParser):
    """Ids, and what refers to them; scripts and addresses, of which there are none."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        told = dict(attrs)
        if told.get("id"):
            self.ids.append(told["id"])
        for key in ("href", "xlink:href"):
            if (told.get(key) or "").startswith("#"):
                self.references.append(told[key][1:])
        self.references += re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in told.values()))


def test_the_page_shows_every_part_and_needs_nothing_else(tmp_path: Path):
    config = sweep(space=["max_segments=0..3", "ratio=1..10", "pace=none,linear", "pace_start=0.1..0.9"])
    html = page(tmp_path, config, some_trials(config))
    names = Names(html)
    assert "script" not in names.tags
    assert not re.search(r"https?:", re.sub(r"http://www\.w3\.org/[\w/]+", "", html))
    assert len(names.ids) == len(set(names.ids))
    assert set(names.references) <= set(names.ids)
    for part in ("settings-chosen", "by-setting", "together", "worth", "trials", "shared", "flags"):
        assert part in names.ids
    assert html.count("<svg role") == 2 * 4 + 1 + 4


def test_the_page_says_what_chose_and_whether_it_saw_pairs(tmp_path: Path):
    config = sweep(space=["max_segments=0..3"])
    assert "not unsupervised" not in page(tmp_path, config, some_trials(config))
    assert "was chosen by agreement of the target" in page(tmp_path, config, some_trials(config))
    config = sweep(space=["max_segments=0..3"], objective="recall")
    html = page(tmp_path, config, some_trials(config))
    assert "not unsupervised" in html
    assert "was chosen by mR on the target" in html


def test_failed_and_stopped_trials_are_told_with_their_reason_and_nothing_they_say_is_taken_for_html(tmp_path: Path):
    config = sweep(space=["max_segments=0..3"])
    trials = some_trials(config, 3)
    trials.append(Trial(3, {"max_segments": 2}, "k3", Outcome("failed", NASTY)))
    stopped = Outcome("stopped", "by asha at step 50 of 200", recall=0.5, agreement=0.9, step=50, steps=200)
    trials.append(Trial(4, {"max_segments": 1}, "k4", stopped))
    html = page(tmp_path, config, trials)
    assert NASTY not in html
    assert html.count("&lt;script&gt;") == 2
    assert "by asha at step 50 of 200" in html
    first = re.search(r'<tr class="chosen">.*?</tr>', html, re.DOTALL)
    assert first is not None
    assert "0.9000" not in first.group()


def test_a_sweep_without_a_finished_trial_has_a_page_too(tmp_path: Path):
    config = sweep(space=["max_segments=0..3"])
    html = page(tmp_path, config, [Trial(0, {"max_segments": 2}, "k", Outcome("failed", "the loss is nan"))])
    assert "No trial came to its end." in html
    assert "the loss is nan" in html


def test_points_that_mean_the_same_are_told_as_one(tmp_path: Path):
    config = sweep(space=["max_segments=0..3"])
    (trial,) = some_trials(config, 1)
    html = page(tmp_path, config, [trial, Trial(1, trial.point, trial.key, trial.outcome)])
    assert "as trial 0" in html


def test_equal_outcomes_make_equal_pages(tmp_path: Path):
    config = sweep(space=["max_segments=0..3", "head_lr=log:1e-5..1e-3"])
    assert page(tmp_path, config, some_trials(config)) == page(tmp_path, config, some_trials(config))


def test_what_trials_share_is_counted_against_what_they_needed():
    config = sweep(space=["max_segments=0..3"])
    trials = [
        Trial(number, {"max_segments": most}, f"k{most}", Outcome("done", tables=2, found=2))
        for number, most in enumerate((0, 1, 3, 3))
    ]
    told = report.sharing_of(config, SHARED, trials)
    captions, masks, crops, embeddings = told.uses
    assert (captions.asked, captions.made) == (3 * 300, 0)  # the last two mean the same
    assert (masks.asked, masks.made) == (0 + 80 + 200, 0)
    assert (crops.asked, crops.made, crops.share) == (280, 200, pytest.approx(80 / 280))
    assert (embeddings.asked, embeddings.made) == (3 * 400 + 280, 460)  # b's table was there
    assert told.factor == pytest.approx(1.0)  # 460 + 140 for all, 400 + 200 for the one with three segments
    assert (told.tables, told.found) == (6, 6)


def test_reals_are_averaged_in_bins_of_equal_width():
    found = [level(x, some_trials(sweep(space=["ratio=1..2"]), 1), "recall") for x in (0.0, 0.1, 6.0)]
    bins, middle = binned([0.0, 0.1, 6.0], found, by_log=False)
    assert middle == [pytest.approx(0.5), pytest.approx(5.5)]
    assert [each.mean for each in bins] == [pytest.approx(found[0].mean)] * 2
    assert [len(each.values) for each in bins] == [2, 1]
    assert bins[0].low <= bins[0].mean <= bins[0].high


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0
