"""Segments from tiles to search on a real Ray: cut, ranked by captions, learnt from, embedded, found again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_set
from PIL import Image
from small_sam import THRESHOLDS, random_sam

from urbancross import cli, storage
from urbancross.config import PretrainConfig
from urbancross.distributed.features import features_stage, make_features, serves
from urbancross.errors import CheckpointError, ConfigError
from urbancross.models import checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

BAD = {  # what shows nothing: name -> size
    "black": (64, 64),
    "dot": (1, 1),
}


def run(verb: str, **settings: Any) -> str:
    kind = cli.VERBS[verb].kind
    return str(cli.call(verb, kind(**({"workers": 1} if "workers" in kind.model_fields else {}) | settings)))


def rows(table: Path) -> list[dict[str, Any]]:
    return [row for name in storage.shards(table) for row in storage.read_shard(table / name).to_pylist()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 28 good tiles, two bad files and two that show nothing, with their segments."""
    home = tmp_path_factory.mktemp("segments")
    given = write_set(home / "set")
    with open(given / "captions.jsonl", "a") as lines:
        for name, size in BAD.items():
            Image.new("RGB", size).save(given / "img" / f"{name}.png")
            told = {"image": f"img/{name}.png", "captions": ["nothing, a lake"], "split": "train"}
            lines.write(json.dumps(told) + "\n")
    run("ingest", source=str(given), archive=str(home / "a"), domain="d", shard_tiles=16)
    line = run("segment", archive=str(home / "a"), max_area=1.0)
    assert line == "read 32 = written 28 + done before 0 + skipped 4 + failed 0"
    return home


@pytest.fixture(scope="module")
def learnt(home: Path) -> Path:
    """The same, with a model pretrained without segments."""
    run("pretrain", out=str(home / "plain"), segments="none", **learning(home))
    return home


def learning(home: Path) -> dict[str, Any]:
    return {"archive": str(home / "a"), "head_epochs": 20, "head_batch": 10, "width": 32, "dropout": 0.0}


def test_a_tile_that_shows_nothing_has_no_segment_and_says_why(home: Path):
    found = {Path(row["tile_id"]).stem: row for row in rows(home / "a" / "segments@felzenszwalb")}
    for name in BAD:
        assert found[name]["segments"] == []
        assert found[name]["failure"] == "skipped:one colour"
    assert found["absent"]["failure"].startswith("skipped:no input (failed:no such file")
    assert all(row["segments"] for row in found.values() if row["failure"] is None)


def test_one_and_two_workers_cut_the_same_segments(home: Path):
    run("segment", archive=str(home / "a"), max_area=1.0, name="two", workers=2)
    assert rows(home / "a" / "segments@two") == rows(home / "a" / "segments@felzenszwalb")
    for name in storage.shards(home / "a" / "segments@two"):
        (home / "a" / "segments@two" / name).unlink()
    (home / "a" / "segments@two" / ".made-by.json").unlink()


def test_sam_cuts_the_same_segments_with_one_and_two_workers_and_only_with_the_weights_it_was_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    weights = home / "sam.pth"
    torch.save(random_sam().state_dict(), weights)
    flags = {"engine": "sam", "points_per_side": 4, "min_area": 0.0, "max_area": 1.0, "max_segments": 8}
    flags |= dict.fromkeys(THRESHOLDS, 0.0) | {"archive": str(home / "sam")}
    shutil.copytree(home / "a", home / "sam", ignore=shutil.ignore_patterns("segments@*"))
    monkeypatch.chdir(home)
    line = run("segment", checkpoint="sam.pth", **flags)  # a path that workers, elsewhere, would not find
    assert line == "read 32 = written 28 + done before 0 + skipped 4 + failed 0"
    with pytest.raises(CheckpointError, match=f"SHA-256 {storage.digest(weights)}.*, not 00000000"):
        run("segment", checkpoint=str(weights), sha256="0" * 8, name="other", **flags)
    run("segment", checkpoint=str(weights), sha256=storage.digest(weights)[:8], name="two", workers=2, **flags)
    found = rows(home / "sam" / "segments@two")
    assert found == rows(home / "sam" / "segments@sam-64x2")
    assert sum(len(row["segments"]) for row in found) > 28
    torch.save(random_sam(seed=1).state_dict(), weights)
    with pytest.raises(ConfigError, match="segments@two was made with sam.weights="):
        run("segment", checkpoint=str(weights), name="two", **flags)


@pytest.mark.slow
def test_from_ranks_to_what_is_learnt_embedded_and_found(learnt: Path, capsys: pytest.CaptureFixture[str]):
    archive = str(learnt / "a")
    line = run("rank", archive=archive, checkpoint=str(learnt / "plain"))
    assert line == "read 32 = written 28 + done before 0 + skipped 4 + failed 0"
    ranks = {row["tile_id"]: row for row in rows(learnt / "a" / "ranks@felzenszwalb-given-plain")}
    for row in rows(learnt / "a" / "segments@felzenszwalb"):
        assert len(ranks[row["tile_id"]]["scores"] or []) == len(row["segments"])
    phrases = {phrase for tile, row in ranks.items() if "town" in tile for phrase in row["phrases"]}
    assert phrases <= {"a town with grey roofs", "many houses", "streets and houses"}

    # A tile without segments is learnt from as any other; it leaves the segment term alone.
    line = run("pretrain", out=str(learnt / "caption"), order="caption", max_segments=3, **learning(learnt))
    assert line == "read 32 = written 22 + done before 0 + skipped 8 + failed 2"
    assert json.loads((learnt / "caption" / "events.jsonl").read_text().splitlines()[-1])["segment_text"] > 0
    # A table of three segments serves who wants one, and knows whose order it follows.
    config = PretrainConfig(out="x", order="caption", max_segments=1, **learning(learnt))
    tables = make_features(learnt / "a", checkpoints.resolve("starter", 32), config, None, None)
    assert tables.features.endswith("-given-felzenszwalb-3-caption-felzenszwalb-given-plain")
    assert tables.max_segments == 1
    # ... but not where it was made from captions that are there no more.
    maker = learnt / "a" / tables.features / ".made-by.json"
    told = maker.read_text()
    made_from = json.loads(told)
    made_from["sources"]["captions@given"] = "captions-of-before"
    maker.write_text(json.dumps(made_from))
    model = checkpoints.resolve("starter", 32)
    stage = features_stage(storage.archive(archive), model, config, None, None)
    assert serves(storage.archive(archive), model, stage) is None
    maker.write_text(told)
    assert serves(storage.archive(archive), model, stage) == tables

    run("embed", archive=archive, checkpoint=str(learnt / "caption"))
    with pytest.raises(ConfigError, match="has no segment embeddings by .*make them with: urbancross embed"):
        run("search", archive=archive, text="a lake", segment_weight=0.5)
    line = run("embed", archive=archive, checkpoint=str(learnt / "caption"), segments="felzenszwalb", max_segments=3)
    assert line == "read 32 = written 28 + done before 0 + skipped 4 + failed 0"
    for row in rows(learnt / "a" / "segment_embeddings@caption"):
        np.testing.assert_allclose(np.linalg.norm(np.array(row["vectors"] or [[1.0]]), axis=1), 1, atol=1e-5)
    capsys.readouterr()
    run("search", archive=archive, text="a blue lake", segment_weight=0.5, top=32, json=True)
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert len(hits) == 30  # the black tile and the dot among them
    assert {Path(hit["tile_id"]).stem for hit in hits if hit["where"] is None} == set(BAD)
    assert "lake" in hits[0]["tile_id"]
    run("search", archive=archive, text="a blue lake", top=2)
    assert "where, pixels" in capsys.readouterr().out


@pytest.mark.slow
def test_ranks_of_other_segments_and_of_an_encoder_that_knows_nothing_are_refused(learnt: Path):
    run("segment", archive=str(learnt / "a"), engine="grid")
    with pytest.raises(ConfigError, match=r"was made from other tables than segments@grid.*rank .*--segments grid"):
        run("pretrain", out=str(learnt / "x"), order="caption", segments="grid", **learning(learnt))
    with pytest.raises(ConfigError, match="has several: segments@felzenszwalb, segments@grid"):
        run("rank", archive=str(learnt / "a"), checkpoint=str(learnt / "plain"))
    with pytest.raises(ConfigError, match="starter: its heads have learnt nothing yet"):
        run("rank", archive=str(learnt / "a"), checkpoint="starter", segments="grid")


@pytest.mark.slow
def test_verify_makes_segments_ranks_and_segment_embeddings_once_more(learnt: Path, capsys: pytest.CaptureFixture[str]):
    """Though by now there are several segments tables, and the runs that made them were told none."""
    for table in ("ranks@felzenszwalb-given-plain", "segment_embeddings@caption"):
        run("verify", archive=str(learnt / "a"), table=table)
