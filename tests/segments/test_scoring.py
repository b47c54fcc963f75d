"""How well segments fit captions, against formulas worked out by hand and an encoder of colours."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from urbancross import schemas, tiles
from urbancross.embedding import embed_segments
from urbancross.segments.choice import choose, ordered
from urbancross.segments.masks import Mask
from urbancross.segments.scoring import fit, rank_tiles

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourEncoder:
    """Sees the mean colour of a crop beyond the fill, and reads the first colour that a text names."""

    fill = (0, 0, 0)
    vector_width = 3

    def encode_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        seen = np.array([image.reshape(-1, 3).mean(axis=0) for image in images], np.float32).reshape(-1, 3)
        return seen / np.linalg.norm(seen, axis=1, keepdims=True)

    encode_segments = encode_images

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        named = [next(COLOURS[word] for word in text.split() if word in COLOURS) for text in texts]
        return np.array(named, np.float32) / 255


def test_the_score_is_the_cosine_with_the_unit_mean_of_the_phrases():
    segments = np.array([[1, 0], [0.6, 0.8]])
    texts = np.array([[1, 0], [0, 1]])
    scores, best = fit(segments, texts)
    np.testing.assert_allclose(scores, [math.sqrt(0.5), 1.4 * math.sqrt(0.5)])
    assert best.tolist() == [0, 1]


def test_phrases_that_cancel_out_divide_by_nothing():
    scores, _ = fit(np.eye(2), np.array([[1.0, 0], [-1, 0]]))
    np.testing.assert_allclose(scores, [0, 0])


def batch() -> tuple[pa.Table, pa.Table, pa.Table]:
    """A red and a blue quarter and a green half; then a tile without segments, one without caption, a failed one."""
    tile = np.zeros((8, 8, 3), np.uint8)
    tile[:4, :4], tile[4:], tile[:4, 4:] = COLOURS["red"], COLOURS["green"], COLOURS["blue"]
    masks = [Mask.of((tile == COLOURS[name]).all(axis=2)) for name in COLOURS]
    segments = choose(masks)
    image = tiles.encode(tile)
    rows = [{"tile_id": f"t{i}", "domain": "d", "image": image, "failure": None} for i in range(4)]
    rows[3] |= {"image": None, "failure": "failed:gone"}
    cut = [{"tile_id": f"t{i}", "segments": [] if i == 1 else segments} for i in range(4)]
    told = [{"tile_id": f"t{i}", "captions": ["a blue lake, with a red roof. one blue pool"]} for i in range(4)]
    told[2]["captions"] = None
    return (
        pa.Table.from_pylist(rows, schema=schemas.TILES),
        pa.Table.from_pylist(cut, schema=schemas.SEGMENTS),
        pa.Table.from_pylist(told, schema=schemas.CAPTIONS),
    )


def test_segments_are_scored_by_rank_and_say_their_phrase():
    found = rank_tiles(ColourEncoder(), *batch()).to_pylist()
    assert [row["failure"] for row in found] == [
        None,
        "skipped:no segment",
        "skipped:no caption",
        "skipped:no input (failed:gone)",
    ]
    # The query is (1, 0, 2) / sqrt 5; by quality the green half comes first, red and blue by their boxes.
    assert found[0]["scores"] == pytest.approx([0, 1 / math.sqrt(5), 2 / math.sqrt(5)])
    assert found[0]["phrases"][1:] == ["with a red roof", "a blue lake"]


def test_the_orders_of_segments():
    tiles_, cut, told = batch()
    segments = cut["segments"][0].as_py()
    ranks = rank_tiles(ColourEncoder(), tiles_, cut, told).to_pylist()[0]
    shuffled = segments[::-1]

    def order(name: str, **more) -> list[int]:
        return [segment["rank"] for segment in ordered(shuffled, name, "t0", **more)]

    assert order("quality") == [0, 1, 2]
    assert order("area") == [0, 1, 2]
    assert order("caption", ranks=ranks) == [2, 1, 0]
    assert order("caption", ranks=ranks, min_score=0.5) == [2]
    assert order("caption", ranks={"scores": None}) == []
    drawn = [tuple(order("random", seed=seed)) for seed in range(40)]
    assert len(set(drawn)) == 6
    assert drawn == [tuple(order("random", seed=seed)) for seed in range(40)]
    assert order("area") == sorted(order("area"), key=lambda rank: -segments[rank]["area"])


def test_the_area_order_is_by_area_alone():
    small, large = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    small[:3, :3], large[5:] = True, True
    rows = choose([Mask.of(small, stability=1.0), Mask.of(large, stability=0.1)])
    assert [row["area"] for row in ordered(rows, "quality")] == [9, 50]
    assert [row["area"] for row in ordered(rows, "area")] == [50, 9]


def test_segments_are_embedded_by_rank_and_only_the_first_few():
    tiles_, cut, _ = batch()
    found = embed_segments(ColourEncoder(), tiles_, cut, max_segments=2).to_pylist()
    np.testing.assert_allclose(found[0]["vectors"], [[0, 1, 0], [1, 0, 0]], atol=1e-6)
    assert [row["failure"] for row in found] == [None, "skipped:no segment", None, "skipped:no input (failed:gone)"]
    assert found[1]["vectors"] is None
