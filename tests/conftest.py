"""A small captioned set that every test of the ring shares, and one Ray session for all of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

KINDS = {
    "lake": ((30, 80, 140), "a blue lake", "water with a shore", "a lake seen from above"),
    "forest": ((30, 90, 40), "a dense green forest", "many trees", "a wood of dark trees"),
    "desert": ((210, 180, 120), "a bare desert", "yellow sand", "dunes of sand"),
    "town": ((150, 140, 140), "a town with grey roofs", "many houses", "streets and houses"),
}


def draw(kind: str, number: int, side: int = 64) -> np.ndarray:
    """`[side, side, 3]` uint8: the kind's colour with noise, and rectangles in towns."""
    rng = np.random.default_rng(1000 * sorted(KINDS).index(kind) + number)
    tile = np.clip(np.array(KINDS[kind][0]) + rng.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)
    if kind == "town":
        for y, x in rng.integers(0, side - 12, (8, 2)):
            tile[y : y + 10, x : x + 10] = (180, 60, 50)
    return tile


def write_set(folder: Path, per_kind: int = 7, gain: float = 1.0) -> Path:
    """A folder with captions.jsonl: every seventh tile of a kind is `valid`; one image is cut short, one is absent."""
    (folder / "img").mkdir(parents=True)
    lines = []
    for kind, (_, *captions) in KINDS.items():
        for number in range(per_kind):
            name = f"img/{kind}-{number}.jpg"
            tile = np.clip(draw(kind, number) * gain, 0, 255).astype(np.uint8)
            Image.fromarray(tile).save(folder / name, quality=92)
            split = "valid" if number % 7 >= 5 else "train"
            lines.append({"image": name, "captions": captions, "split": split})
    cut = folder / "img" / "cut.jpg"
    cut.write_bytes((folder / "img" / "lake-0.jpg").read_bytes()[:300])
    lines.insert(3, {"image": "img/cut.jpg", "captions": ["a lake"], "split": "train"})
    lines.append({"image": "img/absent.jpg", "captions": ["nothing"], "split": "train"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def captioned_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 entries, of which 28 are good: 20 train, 8 valid."""
    return write_set(tmp_path_factory.mktemp("sets") / "source")


@pytest.fixture(scope="session")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kinds of ground under another light."""
    return write_set(tmp_path_factory.mktemp("sets") / "target", gain=0.6)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one; joining it is what every verb does."""
    import ray

    from urbancross.distributed.session import connect

    connect()
    yield
    ray.shutdown()
