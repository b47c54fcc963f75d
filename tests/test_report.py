import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import shapely
from PIL import Image

from urbancross import schemas, storage
from urbancross.maps import table as map_table
from urbancross.maps.features import encode
from urbancross.report import gather
from urbancross.report.contents import DomainGap, Hit, Report
from urbancross.report.figures import _line, _two_directions
from urbancross.report.page import only_here, render, unaccounted, verdict
from urbancross.report.words import data_uri

NASTY = "<script>alert('x')</script> & \"quotes\""
BALANCE = {"stage": "ingest", "archive": "north", "read": 9, "written": 5, "done_before": 2, "skipped": 1, "failed": 1}


def picture(colour: str = "red", side_px: int = 8, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px), colour).save(file, kind)
    return file.getvalue()


def measured(mr: float, lo: float | None = None, hi: float | None = None) -> dict:
    way = {"R@1": mr / 2, "R@5": mr, "R@10": 3 * mr / 2}
    return {
        "protocol": "field",
        "split": "test",
        "gallery": {"tiles": 1093, "texts": 5465},
        "tile_to_text": way,
        "text_to_tile": way,
        "mR": mr,
        "chance_mR": 0.005,
        "ci95": {} if lo is None else {"mR": [lo, hi]},
    }


def hits(*names: str) -> list[Hit]:
    return [Hit(name, 0.5, picture(), f"caption of {name}") for name in names]


def full_report() -> Report:
    draw = np.random.default_rng(0)
    events = [{"step": i, "stage": "heads" if i < 3 else "tower", "loss": 1 / (i + 1), "pace": i / 9} for i in range(9)]
    events[4] |= {"valid_mR": 0.1, "discriminator_accuracy": 0.7, "effective_sample_size": None}
    gap = DomainGap(draw.normal(size=(30, 5)), draw.normal(size=(20, 5)) + 1, 1.25, 0.04, 0.01)
    return Report(
        title="A run",
        subtitle="north -> south",
        balances=[BALANCE],
        failures=[{"archive": "north", "table": "tiles", "reason": "truncated JPEG", "count": 1}],
        metrics={"source only": measured(0.18, 0.16, 0.2), "adapted": measured(0.23, 0.21, 0.25)},
        curves={"pretrain": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], "adapt": events},
        gaps={"source only": gap, "adapted": gap},
        queries={"boats": {"source only": hits("a", "b"), "adapted": hits("b", "c")}},
        settings={"pretrain": {"batch_tiles": 128}},
    )


@pytest.fixture(scope="module")
def full_page() -> str:
    return render(full_report())


class Page(HTMLParser):
    """What a browser would see: every element with its attributes, and whether all are closed in order."""

    empty = frozenset({"meta", "img", "path", "use", "image", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.empty:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]


def test_groups_of_tiles_and_what_adaptation_said_stand_on_the_page():
    of_towns = measured(0.2, 0.1, 0.3) | {"by": {"urban": {"tiles": 9, "mR": 0.31, "ci95": {"mR": [0.2, 0.4]}}}}
    html = render(
        Report("t", "s", advice="use it (better)", metrics={"adapted": of_towns, "source only": measured(0.1)})
    )
    assert "What adaptation said without a single target pair: use it (better)." in html
    assert "mR of urban" in html
    assert "31.0\u00a0% <small>[20.0,\u00a040.0]</small>" in html
    Page(html)


def test_every_text_that_comes_in_is_escaped():
    hit = Hit(NASTY, 0.5, picture(), NASTY)
    html = render(
        Report(
            title=NASTY,
            subtitle=NASTY,
            balances=[BALANCE | {"stage": NASTY, "archive": NASTY}],
            failures=[{"archive": NASTY, "table": NASTY, "reason": NASTY, "count": 1}],
            advice=NASTY,
            metrics={NASTY: measured(0.2) | {"protocol": NASTY, "by": {NASTY: {"mR": 0.1}}}},
            curves={NASTY: [{"step": 0, "loss": 1, "stage": NASTY}, {"step": 1, "loss": 1, "stage": "$\\bad$"}]},
            gaps={NASTY: DomainGap(np.eye(3), -np.eye(3), 1, 1, 1)},
            queries={NASTY: {NASTY: [hit]}},
            settings={NASTY: {NASTY: [NASTY]}},
        )
    )
    page = Page(html)
    assert not page.all("script")
    assert page.all("img")[0]["alt"] == NASTY
    assert all(NASTY in svg["aria-label"] for svg in page.all("svg"))
    assert [li["title"] for li in page.all("li") if "title" in li] == [NASTY]


@pytest.mark.parametrize(("read", "mark"), [(9, "✓"), (10, "✗"), (8, "✗")])
def test_only_counts_that_add_up_are_ticked(read, mark):
    html = render(Report("t", "s", balances=[BALANCE | {"read": read}]))
    assert set(re.findall("[✓✗]", html)) == {mark}  # the row and the total agree
    assert unaccounted(BALANCE | {"read": read}) == read - 9


def test_errors_that_cancel_out_do_not_make_the_total_balance():
    html = render(Report("t", "s", balances=[BALANCE | {"read": 10}, BALANCE | {"read": 8}]))
    assert "✓" not in html
    assert "2 of 2 do not balance" in html


def test_the_same_report_renders_to_the_same_bytes(full_page):
    assert render(full_report()) == full_page


def test_the_page_is_whole_and_asks_the_network_for_nothing(full_page):
    page = Page(full_page)
    assert page.open == []
    links = [
        a[k] for _, a in page.elements for k in ("src", "href", "xlink:href", "srcset", "data", "poster") if k in a
    ]
    assert links
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert not re.search(r"@import|url\((?!#)", full_page)


def test_no_two_elements_share_an_id_and_every_anchor_leads_somewhere(full_page):
    page = Page(full_page)
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert set(ids.values()) == {1}
    wanted = {a[k][1:] for _, a in page.elements for k in ("href", "xlink:href") if a.get(k, "").startswith("#")}
    assert wanted | set(re.findall(r"url\(#([^)]+)\)", full_page)) <= ids.keys()


def test_pictures_and_figures_have_a_text_in_their_place(full_page):
    page = Page(full_page)
    assert len(page.all("svg")) == 1 + (1 + 4) + 2  # intervals, curves, gaps
    assert all(svg["aria-label"] and svg["role"] == "img" for svg in page.all("svg"))
    assert [img["alt"] for img in page.all("img")] == [f"caption of {name}" for name in "abbc"]


@pytest.mark.parametrize(
    ("adapted", "outcome", "words"),
    [
        (
            measured(0.23, 0.21, 0.25),
            "higher",
            "higher after adaptation: 23.0 % [21.0, 25.0] adapted, 18.0 % [16.0, 20.0]",
        ),
        (measured(0.12, 0.10, 0.14), "lower", "lower after adaptation: 12.0 %"),
        (measured(0.21, 0.20, 0.22), "unclear", "No clear difference in mR: 21.0 %"),  # the ends touch
        (measured(0.99), "unclear", "cannot be judged"),
        (measured(0.99, 0.98, 1.0) | {"protocol": "karpathy"}, "unclear", "but protocol differ"),
    ],
)
def test_the_verdict_goes_by_whether_the_intervals_overlap(adapted, outcome, words):
    found = verdict({"source only": measured(0.18, 0.16, 0.2), "adapted": adapted})
    sentence = found.sentence.replace("\u00a0", " ")
    assert found.outcome == outcome
    assert words in sentence
    if outcome != "unclear":
        assert sentence.endswith("The 95 % intervals do not overlap.")


def test_one_model_alone_is_told_beside_chance():
    found = verdict({"source only": measured(0.18, 0.16, 0.2)})
    assert found.sentence.replace("\u00a0", " ") == "source only: mR 18.0 % [16.0, 20.0], by chance 0.5 %."
    assert found.outcome == "none"
    assert verdict({}).sentence == ""


@pytest.mark.parametrize("gone", ["failures", "metrics", "curves", "gaps", "queries", "settings"])
def test_a_part_that_is_missing_leaves_no_heading(full_page, gone):
    short = {"curves": {"adapt": [{"step": 0, "loss": 1}]}, "gaps": {"adapted": full_report().gaps["adapted"]}}
    kept = {name: value for name, value in (vars(full_report()) | short).items() if name != gone}
    page, other = Page(full_page), Page(render(Report(**kept)))
    assert other.open == []
    assert len(page.all("h2")) == 7
    assert len(other.all("h2")) == 6


def test_counts_alone_make_a_page():
    page = Page(render(Report("t", "s", balances=[BALANCE])))
    assert [h2["id"] for h2 in page.all("h2")] == ["counts-title"]
    assert not page.all("svg")


def test_curves_without_a_number_draw_nothing():
    assert "training" not in render(
        Report("t", "s", curves={"adapt": [{"stage": "heads"}, {"loss": None, "step": 1}], "x": []})
    )


def test_a_hit_of_one_model_only_is_outlined():
    models = {"source only": hits("a", "b"), "adapted": hits("b", "c")}
    assert only_here(models) == {"source only": {"a"}, "adapted": {"c"}}
    marked = [
        a for a in Page(render(Report("t", "s", queries={"q": models}))).all("li") if "only" in a.get("class", "")
    ]
    assert [(a["title"], a["class"]) for a in marked] == [("a", "only left"), ("c", "only")]


@pytest.mark.parametrize("models", [{"adapted": hits("a")}, {"source only": hits("a"), "adapted": []}])
def test_without_a_second_model_nothing_is_outlined(models):
    assert not any(only_here(models).values())
    assert 'class="only' not in render(Report("t", "s", queries={"q": models}))


def test_a_large_picture_is_shrunk_and_a_small_one_stays_as_it_is():
    small, large = data_uri(picture(kind="JPEG")), data_uri(picture(side_px=900))
    assert small.startswith("data:image/jpeg;base64,")
    assert large.startswith("data:image/jpeg;base64,")
    assert data_uri(picture()).startswith("data:image/png;base64,")
    assert len(large) < 5000


def test_bytes_that_are_no_picture_leave_a_gap_and_not_an_error():
    html = render(Report("t", "s", queries={"q": {"adapted": [Hit("a", 0.5, b"no picture at all")]}}))
    assert "no picture" in html
    assert "<img" not in html


def test_steps_that_start_again_do_not_fold_the_curve_back():
    events = [{"step": step, "loss": 1.0} for step in (0, 1, 2, 0, 1, 2)]
    assert ">event</text>" in render(Report("t", "s", curves={"adapt": events}))
    assert ">step</text>" in render(Report("t", "s", curves={"adapt": events[:3]}))


def test_a_long_curve_is_averaged_over_neighbours_of_equal_number():
    at, y = _line([float(i) for i in range(1000)], [float(i % 3 == 0) for i in range(999)] + [None])
    assert at[:2].tolist() == [1, 4]  # three events a point
    np.testing.assert_allclose(y, 1 / 3)


def test_each_domain_keeps_its_side_whatever_sign_the_components_come_with():
    draw = np.random.default_rng(0)
    source, target = draw.normal(size=(200, 4)), draw.normal([9, 0, 0, 0], size=(100, 4))
    for sign in (1, -1):
        flat, shares = _two_directions(sign * source, sign * target)
        assert flat[:200, 0].max() < flat[200:, 0].min()
        assert shares[0] > 0.5


def test_failures_are_counted_of_tables_of_tiles_and_not_of_maps_and_runs(tmp_path: Path):
    rows = [{"tile_id": f"t{i}", "domain": "north", "failure": "failed:cut" if i else None} for i in range(3)]
    storage.publish_shard(tmp_path / "tiles" / "part-00000.parquet", pa.Table.from_pylist(rows, schema=schemas.TILES))
    house = encode(["way/1"], [("building=yes",)], np.array([shapely.box(24, 60, 24.1, 60.1)]))
    map_table.write(tmp_path / "map@0123456789abcdef", [SimpleNamespace(table=lambda: house)], {})
    storage.write_json(tmp_path / "runs" / "a" / "balance.json", {})
    assert gather.failures(tmp_path) == [
        {"archive": tmp_path.name, "table": "tiles", "reason": "failed:cut", "count": 2}
    ]
