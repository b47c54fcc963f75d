"""A batch of tiles through a segmenter: what a bad tile costs, and what a tile without segments says."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pytest

from urbancross import schemas, tiles
from urbancross.errors import EngineError
from urbancross.segments.batch import segment_tiles
from urbancross.segments.masks import FelzenszwalbMasks, GridMasks, Mask


def table(*pictures: np.ndarray | bytes) -> pa.Table:
    rows = [
        {"tile_id": f"t{i}", "domain": "d", "image": p if isinstance(p, bytes) else tiles.encode(p), "failure": None}
        for i, p in enumerate(pictures)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.TILES)


def noise(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def flat(*shape: int, value: int = 0) -> np.ndarray:
    return np.full((*shape, 3), value, np.uint8)


@pytest.mark.parametrize("maker", [GridMasks(), FelzenszwalbMasks()], ids=["grid", "felzenszwalb"])
def test_tiles_that_show_nothing_have_an_empty_list_and_a_reason(maker):
    out = segment_tiles(maker, table(flat(8, 8), flat(8, 8, value=90), flat(1, 1), b"no picture", noise(0)))
    assert out["failure"].to_pylist() == ["skipped:one colour"] * 3 + ["failed:not an image", None]
    assert out["segments"].to_pylist()[:4] == [[], [], [], []]
    assert len(out["segments"].to_pylist()[4]) > 0
    assert out["tile_id"].to_pylist() == [f"t{i}" for i in range(5)]


def test_a_tile_whose_masks_are_all_out_of_bounds_says_so():
    out = segment_tiles(GridMasks(), table(noise(0)), min_area=0.3)
    assert out["failure"].to_pylist() == ["skipped:no mask within the bounds"]
    assert out["segments"].to_pylist() == [[]]


class Choosy:
    """Fails at tiles whose first pixel is white, as a library would, in the middle of a batch."""

    def __init__(self) -> None:
        self.steps = 0

    def masks(self, tiles: Iterable[np.ndarray]) -> Iterator[list[Mask]]:
        for tile in tiles:
            if (tile[0, 0] == 255).all():
                raise RuntimeError("white")
            yield [Mask.of(tile[..., 0] < 128)]


def test_a_tile_at_which_the_segmenter_fails_costs_itself_alone():
    bad = noise(1)
    bad[0, 0] = 255
    steps: list[None] = []
    out = segment_tiles(Choosy(), table(noise(0), bad, noise(2)), lambda: steps.append(None))
    assert out["failure"].to_pylist() == [None, "failed:RuntimeError: white", None]
    assert [len(segments) for segments in out["segments"].to_pylist()] == [1, 0, 1]
    assert len(steps) == 3


def test_a_segmenter_that_fails_at_whatever_it_is_given_stops_the_stage():
    bad = noise(1)
    bad[0, 0] = 255
    with pytest.raises(EngineError, match="at every tile: white"):
        segment_tiles(Choosy(), table(bad, bad, bad, noise(0)))
