"""Hubness taken off by a bank: cosines that a loop agrees with, and a hub that is found less."""

from pathlib import Path

import numpy as np
import pytest
import torch
from learning import pairs, pretrained
from torch import Tensor
from torch.nn import functional

from urbancross import metrics, training
from urbancross.embedding import looks
from urbancross.models import checkpoints
from urbancross.models.names import EXTRA
from urbancross.models.query_bank import QueryBank


def units(count: int, width: int = 16, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def hubness(row: Tensor, others: Tensor, likes: Tensor) -> float:
    """Of one row, less the mean over the bank's rows of its modality."""

    def nearness(one: Tensor) -> float:
        return float(np.log(np.mean([np.exp(10 * float(one @ other)) for other in others])) / 10)

    return nearness(row) - float(np.mean([nearness(like) for like in likes]))


def test_scores_are_cosines_less_the_hubness_of_both():
    bank = QueryBank.of(units(30, seed=1), units(20, seed=2))
    v, u = units(7, seed=3), units(5, seed=4)
    tiles, texts = bank.of_tiles(v), bank.of_texts(u)
    assert tiles.shape == (7, 16 + EXTRA)
    for rows in (tiles, texts):
        np.testing.assert_allclose(rows.norm(dim=1), 1, atol=1e-6)
    for i, tile in enumerate(v):
        for j, text in enumerate(u):
            wanted = float(tile @ text) - hubness(tile, bank.texts, bank.tiles) - hubness(text, bank.tiles, bank.texts)
            assert float(tiles[i] @ texts[j]) == pytest.approx(wanted / 1.5, abs=1e-5)


def test_what_is_nearer_than_any_bank_says_is_cut_and_stays_a_unit_vector():
    bank = QueryBank.of(units(30, seed=1), units(20, seed=2))
    rows = bank.of_tiles(10 * units(4))
    np.testing.assert_allclose(QueryBank.of(units(2), -units(2)).of_texts(units(3)).norm(dim=1), 1, atol=1e-6)
    assert bool(torch.isfinite(rows).all())


def test_a_text_that_is_near_to_every_tile_is_found_by_fewer():
    """Tiles lean to one side, which says nothing of them; a text that says only that is their hub."""
    lean = functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(9)), dim=0)
    hidden = units(60)
    v = functional.normalize(hidden + 1.2 * lean, dim=1)
    u = functional.normalize(hidden + 1.2 * lean * torch.rand(60, 1, generator=torch.Generator().manual_seed(5)), dim=1)
    u[0] = lean
    held = slice(30, None)
    bank = QueryBank.of(v[held], u[held])
    tiles, texts = v[:30], u[:30]

    def recall(a: Tensor, b: Tensor) -> float:
        return metrics.evaluate_retrieval(a.numpy(), b.numpy(), np.arange(30), bootstrap=1)["mR"]

    def found_first(a: Tensor, b: Tensor) -> int:
        return int(((a @ b.T).argmax(dim=1) == 0).sum())

    assert found_first(tiles, texts) > 3 * found_first(bank.of_tiles(tiles), bank.of_texts(texts))
    assert recall(bank.of_tiles(tiles), bank.of_texts(texts)) > recall(tiles, texts)


def test_a_picture_finds_tiles_in_the_order_of_plain_cosines_and_counts_as_much_as_a_text():
    bank = QueryBank.of(units(30, seed=1), units(20, seed=2))
    v, picture, text = units(50, seed=3), units(1, seed=6), units(1, seed=7)
    query = bank.of_queries(picture)
    assert torch.equal((bank.of_tiles(v) @ query[0]).argsort(), (v @ picture[0]).argsort())
    assert float(query.norm()) == pytest.approx(float(bank.of_texts(text)[:, :16].norm()))


def test_a_sample_is_of_any_tiles_and_texts_and_the_same_again():
    data = pairs(64)
    model = pretrained(data)
    tiles, texts = training.embedded_sample(model, data, 40, 1)
    assert tiles.shape == texts.shape == (40, 8)
    with torch.inference_mode():
        known = model.heads["image"](data.images)
    places = [int((known - row).abs().amax(dim=1).argmin()) for row in tiles]
    assert len(set(places)) == 40
    np.testing.assert_allclose(known[places], tiles, atol=1e-6)
    assert torch.equal(training.embedded_sample(model, data, 40, 1)[1], texts)
    assert not torch.equal(training.embedded_sample(model, data, 40, 1, "another shard")[1], texts)
    assert len(training.embedded_sample(model, data, 1000, 1)[0]) == 64


def test_a_checkpoint_keeps_its_bank(tmp_path: Path):
    model = checkpoints.load(checkpoints.resolve("starter", 16))
    tiles = [np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8) for seed in range(3)]
    texts = ["a lake", "a wood", "houses by a road"]
    plainly = model.encode_images(tiles), model.encode_texts(texts)
    model.bank = QueryBank.of(*(torch.from_numpy(rows) for rows in plainly))
    checkpoints.save(model, tmp_path, "starter", None, {}, {})
    found = checkpoints.resolve(str(tmp_path))
    assert (found.bank, checkpoints.vector_width(found), checkpoints.width_of(found)) == ((3, 3), 24, 16)
    again = checkpoints.load(found)
    np.testing.assert_array_equal(again.encode_images(tiles), model.encode_images(tiles))
    np.testing.assert_array_equal(again.encode_texts(texts), model.encode_texts(texts))
    assert again.encode_segments(tiles).shape == (3, 24)
    assert again.encode_segments([]).shape == (0, 24)
    nearest = again.encode_images(tiles) @ again.encode_image_queries(tiles).T
    np.testing.assert_array_equal(nearest.argmax(axis=0), range(3))
    np.testing.assert_allclose(looks(again.encode_images(tiles), 16), plainly[0], atol=1e-6)
