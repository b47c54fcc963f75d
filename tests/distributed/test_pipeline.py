"""Ingest, segment, pretrain, adapt, embed, evaluate, search and report on a few tiles, on a real Ray."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from learning import small_open_clip
from safetensors.torch import load_file

from urbancross import cli, storage
from urbancross.errors import ConfigError
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import DualEncoder
from urbancross.tiles import decode

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def run(verb: str, **settings: Any) -> str:
    kind = cli.VERBS[verb].kind
    if "workers" in kind.model_fields:
        settings = {"workers": 1} | settings  # a second actor costs more to start than these few tiles
    return str(cli.call(verb, kind(**settings)))


@pytest.fixture(scope="module")
def home(captioned_set: Path, other_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two archives with segments, and a model pretrained on the first by two workers."""
    home = tmp_path_factory.mktemp("pipeline")
    for name, given in (("source", captioned_set), ("target", other_set)):
        run("ingest", source=str(given), archive=str(home / name), domain=name, shard_tiles=16)
        run("segment", archive=str(home / name), engine="grid", max_area=1.0)
    line = run("pretrain", out=str(home / "source-only"), workers=2, **pretraining(home))
    assert line == "read 30 = written 20 + done before 0 + skipped 8 + failed 2"
    return home


def pretraining(home: Path) -> dict[str, Any]:
    source = str(home / "source")
    return {
        "archive": source,
        "head_epochs": 30,
        "head_batch": 10,
        "width": 32,
        "max_segments": 2,
        "dropout": 0.0,
        "query_bank": 15,
    }


def events(checkpoint: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (checkpoint / "events.jsonl").read_text().splitlines()]


def seen_by(encoder: DualEncoder, archive: Path) -> np.ndarray:
    """Vectors of all tiles of an archive whose images can be read."""
    shards = [storage.read_shard(archive / "tiles" / name) for name in storage.shards(archive / "tiles")]
    rows = [row for shard in shards for row in shard.to_pylist() if row["failure"] is None]
    return encoder.encode_images([decode(row["image"]) for row in rows])


def test_pretraining_learns(home: Path):
    told = events(home / "source-only")
    assert len(told) == 60
    assert told[-1]["tile_text"] < 0.8 * told[0]["tile_text"]
    assert told[-1]["segment_text"] < told[0]["segment_text"]
    model = checkpoints.resolve(str(home / "source-only"))
    assert model.bank == (15, 15)
    assert (checkpoints.width_of(model), checkpoints.vector_width(model)) == (32, 40)


@pytest.mark.slow
def test_a_bank_of_towers_that_learnt_is_seen_through_them(home: Path, tmp_path: Path):
    source, out = str(shutil.copytree(home / "source", tmp_path / "source")), tmp_path / "learnt"
    learning = {"train": "both", "head_epochs": 1, "epochs": 1, "head_batch": 10, "image_batch": 10}
    run("pretrain", archive=source, out=str(out), segments="none", query_bank=5, **learning)
    model = checkpoints.resolve(str(out))
    encoder = checkpoints.load(model)
    bank, encoder.bank = encoder.bank, None
    assert bank is not None
    assert model.bank == (5, 5)
    seen = seen_by(encoder, home / "source")
    apart = np.array([np.abs(seen - row.numpy()).max(axis=1) for row in bank.tiles])  # [bank, tiles of both shards]
    assert apart.min(axis=1).max() < 1e-4
    assert apart.argmin(axis=1).min() < 14  # of the first shard, and of the second
    assert apart.argmin(axis=1).max() >= 16
    again, plainly = tmp_path / "again", tmp_path / "plainly"
    heads = {"archive": source, "model": str(out), "head_epochs": 1, "head_batch": 10, "segments": "none"}
    run("pretrain", out=str(again), **heads)
    run("pretrain", out=str(plainly), query_bank=0, **heads)
    assert [checkpoints.resolve(str(folder)).bank for folder in (again, plainly)] == [(5, 5), None]
    assert not torch.equal(load_file(again / "model.safetensors")["bank.tiles"], bank.tiles)  # seen by the new heads


@pytest.mark.slow
def test_one_worker_learns_what_two_workers_learn(home: Path):
    """The contrastive loss sees the whole batch, whoever embeds it."""
    run("pretrain", out=str(home / "alone"), workers=1, **pretraining(home))
    one, two = (load_file(home / name / "model.safetensors") for name in ("alone", "source-only"))
    moved = load_file(home / "source-only" / "model.safetensors")["heads.image.project.weight"]
    assert moved.abs().mean() > 0.01
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=2e-3, atol=2e-3, msg=name)


@pytest.mark.slow
def test_an_open_clip_model_from_a_folder_learns_and_goes_back_to_plain_open_clip(home: Path, tmp_path: Path):
    model, out = small_open_clip(tmp_path / "small"), tmp_path / "learnt"
    learning = {"train": "both", "crop_px": 48, "head_epochs": 1, "epochs": 2, "head_batch": 10, "image_batch": 10}
    memory = {"chunk": 4, "precision": "bf16"}
    source = str(shutil.copytree(home / "source", tmp_path / "source"))
    run("pretrain", archive=source, model=f"local-dir:{model}", out=str(out), max_segments=2, **learning, **memory)
    assert [event["stage"] for event in events(out)] == ["heads"] * 2 + ["image"] * 4
    run("embed", archive=source, checkpoint=str(out))
    run("embed", archive=source, checkpoint=str(out), segments="grid")
    run("evaluate", archive=source, checkpoint=str(out), split="valid", out=str(tmp_path / "metrics.json"))
    plain, began = (open_clip.create_model(f"local-dir:{folder}").eval() for folder in (out, model))
    moved = load_file(out / "open_clip_model.safetensors")
    for name in ("visual.conv1.weight", "token_embedding.weight", "transformer.resblocks.0.attn.in_proj_weight"):
        assert not torch.equal(moved[name], began.state_dict()[name])
    encoder = checkpoints.load(checkpoints.resolve(str(out)))
    tile = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    mean, std = (torch.tensor(part)[:, None, None] for part in (encoder.mean, encoder.std))
    with torch.inference_mode():
        seen = plain.encode_image(((torch.from_numpy(tile).permute(2, 0, 1) / 255 - mean) / std)[None], normalize=True)
    np.testing.assert_allclose(seen.numpy(), encoder.encode_images([tile]), atol=1e-4)


def test_pretraining_again_does_nothing_and_other_settings_are_refused(home: Path):
    line = run("pretrain", out=str(home / "source-only"), **pretraining(home))
    assert line == "read 30 = written 0 + done before 20 + skipped 8 + failed 2"
    with pytest.raises(ConfigError, match="was made with seed=0, now seed=5"):
        run("pretrain", out=str(home / "source-only"), seed=5, **pretraining(home))


def test_a_finished_checkpoint_does_not_pass_for_one_of_other_data(home: Path):
    with pytest.raises(ConfigError, match="was made from another source; give another --out, or remove it"):
        run("pretrain", out=str(home / "source-only"), **pretraining(home) | {"archive": str(home / "target")})


def test_what_cannot_be_learned_is_refused_before_any_work(home: Path):
    with pytest.raises(ConfigError, match="--crop-px 192: ViT-B-32/openai takes 224 px alone; give --crop-px 224"):
        run("pretrain", archive=str(home / "source"), out=str(home / "x"), model="ViT-B-32/openai", train="image")
    with pytest.raises(ConfigError, match="has no tile of split test; choose another with --split"):
        run("pretrain", archive=str(home / "source"), out=str(home / "x"), split="test")
    assert not list((home / "source").glob("features@*ViT*"))


@pytest.mark.slow
def test_adaptation_to_search_and_report(home: Path, capsys: pytest.CaptureFixture[str]):
    before, after = str(home / "source-only"), str(home / "adapted")
    source, target = str(home / "source"), str(home / "target")
    line = run(
        "adapt",
        checkpoint=before,
        source=source,
        target=target,
        out=after,
        method="urbancross",
        steps=12,
        workers=2,
        target_batch=8,
        ratio=2,
        max_segments=2,
    )
    assert line == "read 60 = written 40 + done before 0 + skipped 16 + failed 4"
    adapted = checkpoints.load(checkpoints.resolve(after))
    bank, adapted.bank = adapted.bank, None
    assert bank is not None
    of_target = seen_by(adapted, home / "target")
    assert max(np.abs(of_target - row.numpy()).max(axis=1).min() for row in bank.tiles) < 1e-3
    begun, *told = events(home / "adapted")
    assert begun["step"] == 0
    assert begun["source_recall"] > 0.5
    assert told[-1]["target_recall"] > 0.3
    verdict = json.loads((home / "adapted" / "verdict.json").read_text())
    assert verdict["adapt"] == (verdict["low"] > 0)
    assert list((home / "adapted" / "tensorboard").glob("events*"))
    assert not (home / "adapted.unfinished").exists()
    assert [told[0]["pace"], told[-1]["pace"]] == [
        pytest.approx(6 / 16),
        1.0,
    ]  # 0.3 of 16 candidates, even for two workers
    assert all(0 < event["effective_sample_size"] <= 1.001 for event in told)
    for archive in (source, target):
        for checkpoint in (before, after):
            assert (
                run("embed", archive=archive, checkpoint=checkpoint)
                == "read 30 = written 28 + done before 0 + skipped 2 + failed 0"
            )
    vectors = storage.read_shard(home / "target" / "embeddings@adapted" / "part-00000.parquet")["vector"]
    lengths = np.linalg.norm(np.array(vectors.drop_null().to_pylist()), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)

    metrics = {}
    for name in ("source-only", "adapted"):
        out = home / f"{name}.json"
        line = run("evaluate", archive=target, checkpoint=str(home / name), split="valid", out=str(out))
        assert line == "read 30 = written 8 + done before 0 + skipped 22 + failed 0"
        metrics[name] = json.loads(out.read_text())
        assert set(metrics[name]) >= {
            "protocol",
            "split",
            "gallery",
            "tile_to_text",
            "text_to_tile",
            "mR",
            "chance_mR",
            "ci95",
        }
        assert metrics[name]["gallery"] == {"tiles": 8, "texts": 24}
    assert metrics["source-only"]["tile_to_text"]["R@10"] > 0.5

    capsys.readouterr()
    run("search", archive=source, text="a blue lake with water", embeddings="source-only", top=3, json=True)
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert all("lake" in hit["tile_id"] for hit in hits)
    with pytest.raises(ConfigError, match="has several: embeddings@adapted, embeddings@source-only"):
        run("search", archive=source, text="a lake")

    page = home / "report.html"
    run(
        "report",
        source=source,
        target=target,
        before=before,
        after=after,
        metrics_before=str(home / "source-only.json"),
        metrics_after=str(home / "adapted.json"),
        queries=["a lake", "trees"],
        out=str(page),
    )
    html = page.read_text()
    assert html.count("data:image/") >= 2 * 2 * 8  # two queries, two models, the eight tiles of the split
    assert "no such file" in html


def test_evaluation_from_stored_vectors_and_from_pixels_agrees(home: Path, tmp_path: Path):
    source, checkpoint = str(home / "source"), str(tmp_path / "copied")  # no embeddings by this checkpoint yet
    shutil.copytree(home / "source-only", checkpoint)
    asked = {"archive": source, "checkpoint": checkpoint, "split": "valid"}
    run("evaluate", **asked, by="land-cover", out=str(tmp_path / "pixels.json"))
    run("embed", archive=source, checkpoint=checkpoint)
    run("evaluate", **asked, out=str(tmp_path / "stored.json"))
    pixels, stored = (json.loads((tmp_path / name).read_text()) for name in ("pixels.json", "stored.json"))
    assert pixels["mR"] == pytest.approx(stored["mR"], abs=0.02)
    assert sum(cover["tiles"] for cover in pixels["by"].values()) == pixels["gallery"]["tiles"]
