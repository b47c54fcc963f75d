"""`gallery` on archives made by hand: what the page shows, and that it needs nothing else."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from PIL import Image

from urbancross import cli, schemas, storage
from urbancross.errors import ConfigError
from urbancross.report.drawn import COLOURS, Fit, apart, drawn
from urbancross.report.gallery import Gallery, TileShown, choose_tiles, render
from urbancross.segments.choice import choose
from urbancross.segments.masks import Mask

NASTY = "<script>alert('x')</script> & \"quotes\""
NAME = "part-{:05d}.parquet"
BOXES = ((0, 0, 10, 20), (10, 0, 20, 10), (10, 10, 20, 15))  # x0, y0, x1, y1: 200, 100 and 50 of 400 pixels


def picture(side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def segments_of(*boxes: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    masks = []
    for x0, y0, x1, y1 in boxes:
        pixels = np.zeros((20, 20), bool)
        pixels[y0:y1, x0:x1] = True
        masks.append(Mask.of(pixels, stability=0.5, predicted_iou=0.875))
    return choose(masks, max_area=1.0, min_area=0)


def archive_of(home: Path, tiles: int = 5, **of_first: Any) -> Path:
    """Two tiles a shard; the second one has no segments, the last one no picture."""
    ids = [f"t{i}" for i in range(tiles)]
    broken = ids[-1]
    rows: dict[str, tuple[pa.Schema, list[dict[str, Any]]]] = {
        "tiles": (
            schemas.TILES,
            [
                {"tile_id": i, "domain": "d", "split": "train" if i < "t3" else "test"}
                | ({"failure": "failed:no such file"} if i == broken else {"image": picture()})
                for i in ids
            ],
        ),
        "segments@grid": (
            storage.with_made_by(schemas.SEGMENTS, {"settings": {"engine": "grid", "min_area": 0.0125}}),
            [
                {"tile_id": i, "segments": [], "failure": "skipped:one colour"}
                if i == "t1"
                else {"tile_id": i, "segments": segments_of(*BOXES)}
                for i in ids
            ],
        ),
        "captions@given": (schemas.CAPTIONS, [{"tile_id": i, "captions": [f"caption of {i}"] * 2} for i in ids]),
        "ranks@m": (
            schemas.RANKS,
            [{"tile_id": i, "scores": [0.125, 0.25, 0.5], "phrases": ["a", "b", f"best of {i}"]} for i in ids],
        ),
    }
    rows["ranks@m"][1][2] = {"tile_id": "t2", "failure": "skipped:no caption"}
    for table, (schema, found) in rows.items():
        found[0] |= {key: value for key, value in of_first.items() if key in schema.names}
        for number, start in enumerate(range(0, tiles, 2)):
            shard = pa.Table.from_pylist(found[start : start + 2], schema=schema)
            storage.publish_shard(home / table / NAME.format(number), shard)
    return home


def page_of(archive: Path, **settings: Any) -> str:
    out = archive.parent / "gallery.html"
    cli.call("gallery", cli.VERBS["gallery"].kind(archive=str(archive), out=str(out), **settings))
    return out.read_text()


def articles(html: str) -> dict[str, str]:
    found = re.findall(r'<article.*?<h2 id="tile-\d+">(.*?)</h2>(.*?)</article>', html, re.DOTALL)
    return dict(found)


class Page(HTMLParser):
    """Every element with its attributes; it falls where one is not closed in order."""

    empty = frozenset({"meta", "image", "path", "circle", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.empty:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_a_tile_shows_its_segments_by_rank_with_their_numbers_beside_the_picture(tmp_path: Path):
    tile = articles(page_of(archive_of(tmp_path / "a")))["t0"]
    rows = [text_of(row) for row in re.findall(r"<tr data-n.*?</tr>", tile, re.DOTALL)]
    assert rows == [
        "1 orange 0.31 0.88 0.50 50.0 %",
        "2 sky blue 0.22 0.88 0.50 25.0 %",
        "3 yellow 0.15 0.88 0.50 12.5 %",
    ]
    assert re.findall(r'class="edge".*? fill="(.*?)".*? d="(.*?)"', tile) == [
        (COLOURS[0].fill, "M0 0V20H10V0Z"), (COLOURS[1].fill, "M10 0V10H20V0Z"), (COLOURS[2].fill, "M10 10V15H20V10Z"),
    ]  # fmt: skip
    assert '<svg viewBox="0 0 20 20"' in tile
    assert "data:image/png;base64," in tile
    assert tile.count("<li>caption of t0</li>") == 1
    assert "In the order of the captions" not in tile


def test_with_ranks_both_orders_stand_there_and_how_far_each_segment_moved(tmp_path: Path):
    tiles = articles(page_of(archive_of(tmp_path / "a"), ranks="m"))
    assert [text_of(li) for li in re.findall(r"<li data-n.*?</li>", tiles["t0"], re.DOTALL)] == [
        "3 0.500 ▲ 2 places up, best of t0", "2 0.250 = b", "1 0.125 ▼ 2 places down, a",
    ]  # fmt: skip
    assert "No order by captions: skipped: no caption" in tiles["t2"]
    few = articles(page_of(tmp_path / "a", ranks="m", max_segments=2))["t0"]
    assert "2 of 3 segments" in few
    assert text_of(few).split("Number ")[1].startswith("3, not shown, fits best: 0.500, best of t0")


def test_a_tile_without_segments_says_why(tmp_path: Path):
    tiles = articles(page_of(archive_of(tmp_path / "a")))
    assert "skipped: one colour" in tiles["t1"]
    assert "<svg" in tiles["t1"]
    assert "failed: no such file" in tiles["t4"]
    assert "no picture" in tiles["t4"]


def test_a_mask_that_does_not_fit_costs_its_own_tile_alone(tmp_path: Path):
    (broken, *_) = segments_of(BOXES[0])
    archive = archive_of(tmp_path / "a", segments=[broken | {"box": [0, 0, 1, 1]}])
    tiles = articles(page_of(archive))
    assert "failed: a mask of 200 pixels does not lie in its box" in tiles["t0"]
    assert "data-n" in tiles["t2"]


def test_the_page_is_whole_says_what_made_it_and_asks_the_network_for_nothing(tmp_path: Path):
    html = page_of(archive_of(tmp_path / "archive"), ranks="m")
    page = Page(html)
    assert not page.all("script")
    assert {image["href"][:10] for image in page.all("image")} == {"data:image"}
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", html)
    assert str(tmp_path) not in html
    assert "archive: segments@grid" in html
    assert re.search(r"<code>min_area</code></th><td><code>0.0125</code>", html)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {article["aria-labelledby"] for article in page.all("article")} <= set(ids)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))


def test_every_text_that_comes_in_is_escaped():
    found, _ = drawn(segments_of(*BOXES), 3, {"scores": [1.0, 2.0, 3.0], "phrases": [NASTY] * 3})
    tile = TileShown(NASTY, picture(), (20, 20), found, 9, None, [NASTY], None, None, (9, Fit(1, 0.5, NASTY)))
    bare = TileShown(NASTY, None, None, [], 0, NASTY, [], NASTY)
    page = Page(render(Gallery(NASTY, NASTY, [tile, bare], {NASTY: {NASTY: NASTY}}, ranked=True)))
    assert not page.all("script")
    assert NASTY in str(page.all("svg")[0]["aria-label"])


def test_the_same_seed_chooses_the_same_tiles_and_each_is_as_likely(tmp_path: Path):
    archive = archive_of(tmp_path / "a")
    names = storage.shards(archive / "segments@grid")

    def choice(seed: int, **settings: Any) -> list[str]:
        config = cli.VERBS["gallery"].kind(archive=str(archive), tiles=2, seed=seed, **settings)
        rows, _ = choose_tiles(archive, names, config)
        return [f"t{2 * names.index(name) + row}" for name, some in rows.items() for row in some]

    assert choice(3) == choice(3)
    counts = np.unique([choice(seed) for seed in range(300)], return_counts=True)
    assert counts[0].tolist() == ["t0", "t1", "t2", "t3", "t4"]
    assert (np.abs(counts[1] - 120) < 35).all()
    assert choice(0, split="test") == ["t3", "t4"]
    assert list(articles(page_of(archive, split="test"))) == ["t3", "t4"]


def test_numbers_stand_on_their_segments_inside_the_picture_and_apart():
    found, _ = drawn(segments_of((0, 0, 20, 20), (2, 2, 18, 18), (19, 0, 20, 20)), 3, None)
    for segment in found:
        assert all(0.8 <= at <= 19.2 for at in segment.label)
    one, other, _ = (shapely.Point(segment.label) for segment in found)
    assert one.distance(other) >= 2 * 0.042 * 20 - 0.1
    assert apart((5.0, 5.0), [], 1, (10, 10)) == (5, 5)
    assert apart((5.0, 5.0), [(5.0, 5.0)], 1, (10, 10)) == (7, 5)


def test_what_is_missing_ends_in_one_line(tmp_path: Path):
    archive = archive_of(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"--ranks x: .* has no ranks@x; it has ranks@m"):
        page_of(archive, ranks="x")
    with pytest.raises(ConfigError, match="has no tile of split valid"):
        page_of(archive, split="valid")
    (archive / "captions@given").rename(archive / "notes")
    assert "caption of" not in page_of(archive)
    assert not list(tmp_path.glob("*.tmp"))
