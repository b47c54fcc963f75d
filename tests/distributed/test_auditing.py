"""Which splits leak: near-copies turned round, neighbours on the ground, another archive."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from urbancross import cli
from urbancross.distributed import ingest
from urbancross.errors import ConfigError
from urbancross.splits import LEFT_OUT
from urbancross.tables import ROWS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def run(verb: str, **settings: Any) -> str:
    return str(cli.call(verb, cli.VERBS[verb].kind(**{"workers": 1} | settings)))


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC))


def write_set(folder: Path, tiles: list[tuple[np.ndarray, str | None, list[float] | None]]) -> Path:
    folder.mkdir()
    lines = []
    for number, (image, split, bounds) in enumerate(tiles):
        Image.fromarray(image).save(folder / f"{number}.png")
        told = {"image": f"{number}.png", "captions": ["a place"], "split": split}
        lines.append(json.dumps(told | ({"bounds": bounds} if bounds else {})) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    return folder


def test_copies_that_were_turned_and_neighbours_are_found_and_the_split_is_not_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiles: list[tuple[np.ndarray, str | None, list[float] | None]] = [
        (picture(seed), "train", [seed, 0, seed + 0.01, 0.01]) for seed in range(6)
    ]
    tiles += [
        (np.rot90(picture(0)).copy(), "test", [50, 0, 50.01, 0.01]),  # a copy elsewhere
        (picture(20), "test", [1.015, 0, 1.025, 0.01]),  # half a tile beside
        (picture(21), "test", [60, 0, 60.01, 0.01]),
        (picture(22), "valid", [70, 0, 70.01, 0.01]),
        (np.full((48, 48, 3), 9, np.uint8), "valid", None),
    ]
    home = tmp_path / "a"
    run("ingest", source=str(write_set(tmp_path / "set", tiles)), archive=str(home), domain="d", shard_tiles=4)
    assert run("audit-splits", archive=str(home)) == "read 11 = written 10 + done before 0 + skipped 1 + failed 0"
    told = capsys.readouterr().out
    assert "test: 1 of 3 tiles have a near-copy in train, 1 lie within 1 tiles of it" in told
    assert "valid: 0 of 2 tiles have a near-copy in train, 0 lie within 1 tiles of it" in told
    leaks = {(leak["split"], leak["from"]): leak for leak in json.loads((home / "audit.json").read_text())["leaks"]}
    assert leaks["test", "train"]["examples"] == [["6.png", "0.png"]]
    with pytest.raises(ConfigError, match="split test of .* leaks: 1 of its 3 tiles .*give --allow-leaks"):
        run("evaluate", archive=str(home), checkpoint="starter", split="test")

    # Split by look or by place, the same pictures pass: the copy follows its original, the neighbour makes room.
    for by, count in (("look", 11), ("place", 9)):
        given = write_set(tmp_path / by, [(image, None, box) for image, _, box in tiles if box or by == "look"])
        told_of = {"archive": str(tmp_path / f"by-{by}"), "valid_share": 0.3, "test_share": 0.3, "seed": 5}
        run("ingest", source=str(given), domain="d", split_by=by, block_m=2000, **told_of)
        run("audit-splits", archive=told_of["archive"])
        leaks_of = json.loads((tmp_path / f"by-{by}" / "audit.json").read_text())["leaks"]
        assert {leak["near_copies" if by == "look" else "neighbours"] for leak in leaks_of} == {0}
        assert {leak["split"] for leak in leaks_of} == {"train", "valid", "test"}
        assert sum(leak["tiles"] for leak in leaks_of) == 2 * count

    # What was left out between two splits is known as such to a run that plans more; half a plan says nothing.
    known = ingest.planned_splits(tmp_path / "by-place")
    assert list(known.values()).count(LEFT_OUT) == 1
    assert len(known) == 10
    (tmp_path / "by-place" / "plan" / ROWS).unlink()
    assert ingest.planned_splits(tmp_path / "by-place") == {}

    # Of another archive: the train tiles of this one's test copy.
    other = tmp_path / "b"
    given = write_set(tmp_path / "other", [(picture(30), "valid", None), (picture(3)[:, ::-1].copy(), "valid", None)])
    run("ingest", source=str(given), archive=str(other), domain="e")
    run("audit-splits", archive=str(other), against=str(home))
    assert f"valid: 1 of 2 tiles have a near-copy in train of {home}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=f"near-copy in train of {home}"):
        run("evaluate", archive=str(other), checkpoint="starter", split="valid")
    run("audit-splits", archive=str(home))
    assert [leak["archive"] for leak in json.loads((other / "audit.json").read_text())["leaks"]].count(str(home)) == 3
