import numpy as np
import pytest
from PIL import Image

from urbancross import duplicates
from urbancross.duplicates import copies, digest_of, near_duplicates, neighbours_in_place, perceptual_hashes
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


def copies_one_by_one(digests: list[bytes], hashes: np.ndarray, hashed: np.ndarray, reach: int) -> list[tuple]:
    """The plain version: each tile against all that were kept before it."""
    kept: list[int] = []
    found = []
    for j in range(len(digests)):
        told: tuple = (-1, False, 0)
        # What is pixel for pixel a copy of a copy is one of what that is a copy of, at the same distance.
        same = [i for i in range(j) if digests[i] == digests[j] and digests[j]]
        if same:
            of, _, bits = found[same[0]]
            told = (same[0], True, 0) if of < 0 else (of, False, bits)
        elif hashed[j]:
            for i in kept:
                bits = int(np.bitwise_count(hashes[j, 0] ^ hashes[i]).min())
                if hashed[i] and bits <= reach:
                    told = (i, False, bits)
                    break
        if told[0] < 0:
            kept.append(j)
        found.append(told)
    return found


@pytest.mark.parametrize("reach", [0, 2, 4])
def test_copies_are_those_that_a_walk_through_all_tiles_finds(reach: int, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(reach)
    hashes = rng.integers(0, 2**63, (120, 8), dtype=np.uint64)
    digests = [bytes([i, 7]) for i in range(120)]
    for j in range(20, 120):  # chains of copies of copies, twins pixel for pixel, equal hashes, and tiles without
        i = int(rng.integers(j))
        if j % 4 == 0:
            digests[j], hashes[j] = digests[i], hashes[i]
        elif j % 4 == 1:
            flipped = rng.choice(63, int(rng.integers(0, 4)), replace=False)
            hashes[j] = np.roll(hashes[i], int(rng.integers(8)))
            hashes[j, 0] ^= np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64), initial=np.uint64(0))
    hashed = rng.random(120) > 0.1
    for j in range(120):
        hashed[j] = hashed[digests.index(digests[j])]
    digests[50:53] = [b""] * 3
    hashed[50:53] = False
    wanted = copies_one_by_one(digests, hashes, hashed, reach)
    assert len({of for of, *_ in wanted}) > 15
    assert {exact for _, exact, _ in wanted} == {True, False}
    for at_once in (1 << 20, 3):
        monkeypatch.setattr(duplicates, "CANDIDATES", at_once)
        found = copies(np.array(digests, "S16"), hashes, hashed, reach)
        told = zip(found.of.tolist(), found.exact.tolist(), found.distance.tolist(), strict=True)
        assert list(told) == wanted


def test_what_comes_later_changes_no_answer():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 4, (200, 1), dtype=np.uint64) << np.uint64(9)
    hashes ^= rng.integers(0, 2**12, (200, 1), dtype=np.uint64)
    digests, hashed = np.array([bytes([i]) for i in range(1, 201)], "S16"), np.ones(200, bool)
    whole = copies(digests, hashes, hashed, 3).of
    assert 0 < (whole < 0).sum() < 150
    np.testing.assert_array_equal(copies(digests[:90], hashes[:90], hashed[:90], 3).of, whole[:90])


def test_a_digest_tells_pixels_and_shapes_apart():
    one = np.zeros((2, 6, 3), np.uint8)
    assert digest_of(one) == digest_of(one[::-1])
    assert digest_of(one) != digest_of(one.reshape(3, 4, 3))
    assert digest_of(one) != digest_of(one + np.uint8(1))
    assert len(digest_of(one)) == 16


def test_few_tiles_are_compared_with_each_of_many(monkeypatch: pytest.MonkeyPatch):
    compared = []
    count = np.bitwise_count
    monkeypatch.setattr(duplicates.np, "bitwise_count", lambda bits: compared.append(bits.size) or count(bits))
    hashes = np.random.default_rng(0).integers(0, 2**63, (20_000, 8), dtype=np.uint64)
    near_duplicates(hashes[:, 0], hashes, 4)
    assert sum(compared) < 100 * len(hashes)  # of 160,000 each


def test_a_tile_that_is_near_only_to_a_copy_stays():
    start = np.uint64(0x0F0F_1234_5678_9ABC)
    hashes = np.array([[start], [start ^ np.uint64(3)], [start ^ np.uint64(15)], [start ^ np.uint64(15)]])
    found = copies(np.array([b"a", b"b", b"c", b"d"]), hashes, np.ones(4, bool), 2)
    assert found.of.tolist() == [-1, 0, -1, 2]
    assert found.distance.tolist() == [0, 2, 0, 0]
