"""`caption --engine vllm` with a real engine on this CPU, inside a real Ray Data job."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from tiny_vlm import build

from urbancross import cli, schemas, storage
from urbancross.config import CaptionConfig
from urbancross.distributed.captioning import name_of, resolve
from urbancross.errors import ConfigError

pytestmark = pytest.mark.ray

SHARDS, TILES = 4, 16
SMALL = {"kv_cache_memory_bytes": 64 << 20, "dtype": "float32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-vlm"
    build(folder)
    return folder


def tile_rows():
    """64 tiles; one image is cut short, one is garbage, one empty, and one tile has a tag longer than any prompt."""
    rows, tags = [], []
    for number in range(SHARDS * TILES):
        pixels = np.random.default_rng(number).integers(0, 255, (96, 96, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG")
        image = {5: data.getvalue()[:200], 20: b"garbage", 40: b""}.get(number, data.getvalue())
        tile_id = f"t{number:02d}"
        rows.append({"tile_id": tile_id, "domain": "x", "image": image, "gsd_m": 0.5, "failure": None})
        center = ["landuse=" + "very_long_" * 400] if number == 50 else ["landuse=forest"]
        tags.append({"tile_id": tile_id, "center_tags": center, "surrounding_tags": ["highway=track"], "failure": None})
    return rows, tags


BAD = {
    "t05": "failed:corrupt image",
    "t20": "failed:not an image",
    "t40": "failed:not an image",
    "t50": "failed:the model takes no such question",
}


def make_archive(folder: Path) -> Path:
    rows, tags = tile_rows()
    for shard in range(SHARDS):
        part = slice(shard * TILES, (shard + 1) * TILES)
        name = f"part-{shard:05d}.parquet"
        storage.publish_shard(folder / "tiles" / name, pa.Table.from_pylist(rows[part], schema=schemas.TILES))
        storage.publish_shard(folder / "geotags" / name, pa.Table.from_pylist(tags[part], schema=schemas.GEOTAGS))
    return folder


def config(archive: Path, model: Path, **more) -> CaptionConfig:
    told = {"max_model_len": 1024, "max_num_seqs": 16, "max_chars": 140, "batch_tiles": 8, "on_contradiction": "keep"}
    return CaptionConfig(
        **{"archive": str(archive), "engine": "vllm", "model": str(model), "engine_args": SMALL, **told, **more}
    )


def rows_of(archive: Path) -> list[dict]:
    table = archive / "captions@tiny-vlm"
    return [row for name in storage.shards(table) for row in storage.read_shard(table / name).to_pylist()]


def own_processes(name: str) -> set[int]:
    """Those that this one began, Ray's and their children's too; no other Ray of the machine is touched."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def kill_once(find, when, killed: list[int]) -> threading.Thread:
    """A thread that waits for `when()` and kills what `find()` finds then, after a second in which it stands still and
    others wait for it."""

    def work():
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if when() and (found := find()):
                for sent in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in found:
                        os.kill(pid, sent)
                    time.sleep(1)
                killed.extend(found)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, ray_session):
    archive = make_archive(tmp_path_factory.mktemp("vllm") / "a")
    return archive, cli.call("caption", config(archive, model))


def test_sixty_of_sixty_four_tiles_get_captions_and_four_say_why_not(made):
    archive, balance = made
    assert (balance.read, balance.written, balance.failed) == (64, 60, 4)
    rows = rows_of(archive)
    assert [row["tile_id"] for row in rows] == [row["tile_id"] for row in tile_rows()[0]]
    failures = {row["tile_id"]: row["failure"] for row in rows if row["failure"]}
    assert failures.keys() == BAD.keys()
    assert all(failures[tile].startswith(reason) for tile, reason in BAD.items()), failures
    for row in rows:
        if not row["failure"]:
            (caption,) = row["captions"]
            assert 3 <= len(caption) <= 140
            assert (row["engine"], row["repaired"], row["attempts"]) == ("vllm", False, 1)
            assert row["land_use"]
            assert row["tags"] == ["landuse=forest", "highway=track"]
    assert len({row["captions"][0] for row in rows if not row["failure"]}) == 60


@pytest.mark.slow
def test_a_second_run_whose_engine_is_killed_ends_in_the_same_table(made, model, tmp_path):
    archive = make_archive(tmp_path / "b")
    killed: list[int] = []
    killer = kill_once(
        lambda: own_processes("ray::MapWorker"), lambda: storage.shards(archive / "captions@tiny-vlm"), killed
    )
    balance = cli.call("caption", config(archive, model))
    killer.join(3)
    assert killed
    assert (balance.written, balance.failed) == (60, 4)
    assert rows_of(archive) == rows_of(made[0])


def test_a_folder_without_a_model_and_a_model_of_text_are_one_line(made, tmp_path):
    archive = str(made[0])
    with pytest.raises(ConfigError, match="has no config.json"):
        cli.call("caption", config(archive, tmp_path))
    with pytest.raises(ConfigError, match="no such folder"):
        cli.call("caption", config(archive, tmp_path / "absent"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ConfigError, match="cannot be loaded by vLLM"):
        cli.call("caption", config(archive, broken))
    assert not storage.exists(Path(archive) / "captions@broken" / ".made-by.json")


def test_other_weights_are_another_maker(made, model, tmp_path):
    archive = str(made[0])
    assert resolve(str(model), config(archive, model))[1] == resolve(str(model), config(archive, model))[1]
    other = tmp_path / "tiny-vlm"
    build(other, seed=1)
    with pytest.raises(ConfigError, match="was made with model="):
        cli.call("caption", config(archive, other))


def test_a_table_is_named_after_its_model():
    assert name_of("Qwen/Qwen2.5-VL-7B-Instruct") == "qwen2.5-vl-7b-instruct"
    assert name_of("/models/My VLM/") == "my-vlm"


@pytest.mark.slow
def test_an_engine_in_a_process_of_its_own_is_replaced_and_its_batch_asked_again(made, model, tmp_path):
    """As on GPUs, where vLLM's core is a process beside the actor."""
    archive = make_archive(tmp_path / "c")
    program = [sys.executable, "-m", "urbancross.cli", "caption", "--archive", str(archive), "--engine", "vllm"]
    program += ["--model", str(model), "--max-model-len", "1024", "--max-num-seqs", "16", "--max-chars", "140"]
    program += ["--batch-tiles", "8", "--on-contradiction", "keep", "--engine-args", json.dumps(SMALL)]
    killed: list[int] = []
    killer = kill_once(
        lambda: own_processes("VLLM::EngineCore"), lambda: storage.shards(archive / "captions@tiny-vlm"), killed
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=400)
    killer.join(3)
    assert done.returncode == 0, done.stderr[-3000:]
    assert killed
    assert rows_of(archive) == rows_of(made[0])
