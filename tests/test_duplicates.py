import numpy as np
import pytest
from PIL import Image

from urbancross.duplicates import near_duplicates, neighbours_in_place, perceptual_hashes
from urbancross.errors import ConfigError, TileSkipped


def picture(seed: int, side: int = 64) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.bitwise_count(a[0] ^ b).min())


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_a_turned_and_flipped_picture_has_the_same_hash_in_another_orientation(turns: int, flip: bool):
    for seed in range(5):
        turned = np.rot90(picture(seed)[:, ::-1] if flip else picture(seed), turns)
        assert distance(perceptual_hashes(picture(seed)), perceptual_hashes(np.ascontiguousarray(turned))) <= 1


def test_a_picture_that_was_stored_again_is_near_and_another_is_far():
    for seed in range(5):
        one, other = perceptual_hashes(picture(seed)), perceptual_hashes(picture(seed + 100))
        brighter = np.clip(picture(seed).astype(int) + 12, 0, 255).astype(np.uint8)
        smaller = np.asarray(Image.fromarray(brighter).resize((50, 50)))
        assert distance(one, perceptual_hashes(smaller)) <= 4
        assert distance(one, other) > 8


def test_a_plain_picture_is_told_from_none():
    with pytest.raises(TileSkipped, match="too plain"):
        perceptual_hashes(np.full((20, 20, 3), 77, np.uint8))


@pytest.mark.parametrize("reach", [0, 1, 4])
def test_near_duplicates_are_those_that_a_comparison_of_all_finds(reach: int):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 60, dtype=np.uint64, endpoint=False)
    others = rng.integers(0, 2**64, (40, 8), dtype=np.uint64, endpoint=False)
    for i in range(20):  # near-copies, in some orientation
        bits = rng.choice(64, min(i, 6), replace=False)
        others[i, rng.integers(8)] = hashes[2 * i] ^ np.bitwise_or.reduce(
            np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0)
        )
    wanted = [[i, j] for i in range(60) for j in range(40) if np.bitwise_count(hashes[i] ^ others[j]).min() <= reach]
    assert near_duplicates(hashes, others, reach).tolist() == wanted
    assert len(wanted) > reach
    with pytest.raises(ConfigError, match="differ in 16 bits"):
        near_duplicates(hashes, others, 16)


def test_neighbours_are_those_within_the_buffer_also_across_the_antimeridian():
    row = [[x, 0.0, x + 1.0, 1.0] for x in range(4)]
    assert neighbours_in_place(row[:1], row, 0.5).tolist() == [[0, 0], [0, 1]]
    assert neighbours_in_place(row[:1], row, 1.0).tolist() == [[0, 0], [0, 1]]
    assert neighbours_in_place(row[:1], row, 1.5).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert neighbours_in_place([[178.5, 0, 179.5, 1]], [[-179.5, 0, -178.5, 1], [0, 0, 1, 1]], 1.5).tolist() == [[0, 0]]
    assert neighbours_in_place([], row, 1.0).shape == (0, 2)


@pytest.mark.parametrize("side", [32, 33, 47, 48, 64, 100, 224])
def test_a_turned_picture_has_the_hashes_of_the_picture_in_another_order_at_any_size(side: int):
    small = np.random.default_rng(side).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
    of_picture = set(perceptual_hashes(picture).tolist())
    for turns in range(4):
        for turned in (np.rot90(picture, turns), np.rot90(picture, turns)[:, ::-1]):
            assert set(perceptual_hashes(turned.copy()).tolist()) == of_picture
