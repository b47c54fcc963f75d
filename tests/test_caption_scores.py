"""The table of caption scores: what is compared with what."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from caption_scores import markdown, nearest_captions, read_tiles, retrieval, shuffled

from urbancross import schemas, storage
from urbancross.errors import ConfigError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Four tiles, two of them to be judged; one of those has no generated caption."""
    ids = [f"tile-{i}" for i in range(4)]
    tables = {
        "tiles": (schemas.TILES, {"domain": ["d"] * 4, "split": ["train", "valid", "train", "valid"]}),
        "captions@given": (schemas.CAPTIONS, {"captions": [["a", "b"], ["c"], ["e"], ["f", "g"]]}),
        "captions@vllm": (schemas.CAPTIONS, {"captions": [["t"], ["u", "v"], ["w"], None]}),
        "features@x": (schemas.features(2, 1), {"image": [[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 1.0]]}),
    }
    for name, (schema, columns) in tables.items():
        rows = [{"tile_id": tile} | {key: column[i] for key, column in columns.items()} for i, tile in enumerate(ids)]
        storage.publish_shard(tmp_path / name / "part-00000.parquet", pa.Table.from_pylist(rows, schema=schema))
    return tmp_path


def test_the_judged_split_is_read_with_a_blank_for_a_missing_caption(archive: Path):
    tiles = read_tiles(archive, "valid", "given", ["vllm"])
    assert tiles.references == [["c"], ["f", "g"]]
    assert tiles.generated == {"vllm": ["u", ""]}
    assert tiles.features.tolist() == [[0, 1], [3, 1]]
    with pytest.raises(ConfigError, match="no tile of split test"):
        read_tiles(archive, "test", "given", ["vllm"])
    with pytest.raises(ConfigError, match="no captions@other"):
        read_tiles(archive, "valid", "given", ["other"])


def test_the_nearest_training_tile_is_nearest_by_angle(archive: Path):
    judged, train = (read_tiles(archive, split, "given", []) for split in ("valid", "train"))
    assert nearest_captions(judged, train) == ["e", "a"]


def test_shuffled_texts_are_the_same_texts_none_at_its_place():
    texts = [str(i) for i in range(50)]
    moved = shuffled(texts, seed=3)
    assert sorted(moved) == sorted(texts)
    assert all(a != b for a, b in zip(texts, moved, strict=True))


class Compass:
    """An encoder whose texts are directions already."""

    heads = {"image": torch.nn.functional.normalize}  # noqa: RUF012

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        angles = np.array([float(text or 0) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_a_tile_without_a_caption_counts_as_missed():
    around = torch.arange(12) * np.pi / 6
    features = torch.stack([around.cos(), around.sin()], dim=1) * 3
    texts = [str(angle) for angle in around.tolist()]
    assert retrieval(Compass(), features, texts, 0)["mR"] == 1  # type: ignore[arg-type]
    found = retrieval(Compass(), features, [*texts[:11], ""], 0)  # type: ignore[arg-type]
    assert found["text_to_tile"]["R@10"] == pytest.approx(11 / 12)


def test_the_table_has_a_line_for_every_row():
    found = {"R@1": 0.1, "R@5": 0.2, "R@10": 0.3}
    row = {"distinct": 1200, "text_to_tile": found, "tile_to_text": found, "mR": 0.2, "ci95": {"mR": [0.15, 0.25]}}
    score = {"value": 0.5, "ci95": [0.4, 0.6]}
    lines = markdown({"ours": row | {"BLEU-4": score, "CIDEr-D": score}, "a person's": row}).splitlines()
    assert lines[2] == (
        "| ours | 1,200 | 50.0 (40.0 to 60.0) | 0.50 (0.40 to 0.60) | 10.0 / 20.0 / 30.0 | 10.0 / 20.0 / 30.0"
        " | 20.0 (15.0 to 25.0) |"
    )
    assert lines[3].startswith("| a person's | 1,200 |  |  |")
