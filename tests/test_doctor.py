"""What `doctor` makes of a machine, a model and an archive: things that are amiss are made so, and named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as to_bytes

from urbancross import cli, doctor, storage
from urbancross.distributed.doctor import Seen, captioner, judge, look
from urbancross.doctor import Finding
from urbancross.progress import GIB


def test_the_packages_of_this_environment_are_what_urbancross_asks_for():
    found = doctor.packages()
    assert found.state == "ok", found
    assert f"torch {doctor.version('torch')}" in found.told


def test_packages_that_are_missing_or_of_other_versions_are_named(monkeypatch: pytest.MonkeyPatch):
    wanted = ["numpy>=2", "numpy<1", "not-there>=3; extra == 'x'", "nor-this>=3"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda package: wanted)
    found = doctor.packages()
    assert found.state == "amiss"
    assert found.told == f"numpy {doctor.version('numpy')} (wanted <1), nor-this none (wanted >=3)"
    assert "make setup" in found.do


@pytest.mark.parametrize(("limit", "state"), [(64 * GIB, "ok"), (6 * GIB, "note"), (2 * GIB, "amiss")])
def test_memory_is_what_the_control_group_allows(
    limit: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(doctor, "CGROUP", tmp_path / "memory.max")
    monkeypatch.setattr(doctor.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 128 * GIB // 4096}.__getitem__)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert doctor.memory().state == state
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory() == Finding("memory", "ok", "128.0 GiB")


def test_a_small_shared_memory_comes_with_the_flag_that_makes_it_larger(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_memory", lambda: 1000 * GIB * 1024)  # none has a third of that
    found = doctor.shared_memory()
    assert found.state in ("note", "amiss")
    assert "docker run --shm-size=" in found.do


def test_a_disk_that_is_nearly_full_is_amiss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(doctor, "FEWEST_DISK", 1 << 80)
    monkeypatch.setattr(doctor, "ENOUGH_DISK", 1 << 81)
    found = doctor.disk()
    assert (found.state, str(tmp_path) in found.told) == ("amiss", True)


def test_models_that_are_not_there_or_not_whole_are_amiss(tmp_path: Path):
    assert doctor.model("starter").state == "ok"
    assert doctor.model("no-such-model").state == "amiss"
    (tmp_path / "model.safetensors").write_bytes(to_bytes({"other": torch.zeros(1)}))
    told = {"base": "starter", "width": 8, "fingerprint": "0" * 16, "towers": "t"}
    (tmp_path / "checkpoint.json").write_text(json.dumps(told))
    found = doctor.model(str(tmp_path))
    assert (found.state, found.do) == ("amiss", "copy the checkpoint again")


def test_an_archive_is_written_to_and_left_as_it_was(tmp_path: Path, bucket: storage.Place):
    (tmp_path / "tiles").mkdir()
    assert doctor.archive(str(tmp_path)) == Finding(f"archive {tmp_path}", "ok", "1 table, read and written")
    assert [path.name for path in tmp_path.iterdir()] == ["tiles"]
    assert doctor.archive(f"{tmp_path}/absent").state == "amiss"
    storage.create(bucket / "a" / "tiles" / "part-00000.parquet", b"x")
    assert doctor.archive(str(bucket / "a")).state == "ok"
    assert storage.names(bucket / "a") == ["tiles"]
    assert doctor.archive(str(bucket / "b")).do


def test_a_store_that_lets_a_name_be_created_twice_is_amiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tiles").mkdir()
    monkeypatch.setattr(storage, "create", lambda place, data: "version")
    found = doctor.archive(str(tmp_path))
    assert found.state == "amiss"
    assert "If-None-Match" in found.do


def test_a_node_of_other_versions_and_one_whose_gpus_ray_does_not_know_are_amiss():
    here = {"python": "3.11.7", "torch": "2.13"}
    assert judge("node", here, Seen(here, 0, False), gpus=0).state == "ok"
    assert judge("node", here, Seen(here, 8, True), gpus=8).state == "ok"
    other = judge("node", here, Seen(here | {"torch": "2.12"}, 0, False), gpus=0)
    assert (other.state, other.told) == ("amiss", "torch 2.12 (here 2.13)")
    blind = judge("node", here, Seen(here, 8, True), gpus=0)
    assert (blind.state, blind.do) == ("amiss", "ray start --num-gpus, on that node")
    assert judge("node", here, Seen(here, 8, True), gpus=4).state == "note"
    assert "no driver" in judge("node", here, Seen(here, 0, False), gpus=8).told


def test_another_node_tells_what_is_not_well_with_it_and_this_one_has_told(tmp_path: Path):
    absent = str(tmp_path / "absent")
    assert look(absent, is_here=True).wrong == ()
    assert f"archive {absent}" in [found.what for found in look(absent, is_here=False).wrong]


def test_a_captioner_and_weights_of_sam_are_looked_at(tmp_path: Path):
    assert captioner("Qwen/Qwen2.5-VL-7B-Instruct").state == "note"
    assert captioner(str(tmp_path)).told.endswith("has no config.json")
    (tmp_path / "config.json").write_text("{}")
    assert captioner(str(tmp_path)).state == "ok"
    (tmp_path / "sam.pth").write_bytes(b"cut short")
    found = doctor.sam_weights(str(tmp_path / "sam.pth"))
    assert (found.state, "is no checkpoint or is cut short" in found.told) == ("amiss", True)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_verb_tells_all_and_ends_with_1_where_something_is_amiss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cli.call("doctor", cli.VERBS["doctor"].kind(json=True))
    found = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"packages", "vLLM", "memory", "shared memory", "disk", "model starter", "Ray"} < set(found)
    assert [row["state"] for what, row in found.items() if what.startswith("node ")] == ["ok"]
    with pytest.raises(SystemExit) as ended:
        cli.main("doctor", ["--archive", str(tmp_path / "absent")])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert "amiss" in out
    line = err.splitlines()[-1]
    assert line.startswith("jobs/doctor.py: amiss: ")
    assert line.endswith(f"archive {tmp_path}/absent; what to do stands beside each")
