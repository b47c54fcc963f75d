"""A sweep on a real Ray Tune: whole Ray Train runs as trials, on a few tiles."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from urbancross import cli, config, storage
from urbancross.command_line import from_command_line
from urbancross.distributed import tuning
from urbancross.errors import ConfigError
from urbancross.sweep import outcomes

# slow, all of it: each sweep is a row of Ray Train runs
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

CPUS = (os.cpu_count() or 1) + 2  # that a session of our own has
PROGRAM = "import sys; from urbancross.cli import main; main(sys.argv.pop(1))"


def call(verb: str, **settings: Any) -> str:
    told = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    return str(cli.call(verb, cli.VERBS[verb].kind(**{"workers": 1} | told)))


@pytest.fixture(scope="module")
def home(captioned_set: Path, other_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two archives with segments, and a model pretrained on the first."""
    home = tmp_path_factory.mktemp("tuning")
    for name, given in (("source", captioned_set), ("target", other_set)):
        call("ingest", source=given, archive=home / name, domain=name)
        call("segment", archive=home / name, engine="grid", max_area=1.0)
    call("pretrain", archive=home / "source", out=home / "source-only", head_epochs=10, head_batch=10, width=32)
    return home


def sweep(home: Path, **settings: Any) -> dict[str, Any]:
    """Flags of a small sweep."""
    places = {"checkpoint": home / "source-only", "source": home / "source", "target": home / "target"}
    return places | {"steps": 4, "evaluate_steps": 2, "target_batch": 8} | settings


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (out / outcomes.TRIALS).glob("*.json")}


def asked(out: Path) -> list[dict[str, Any]]:
    history = json.loads((out / outcomes.ASKED).read_text())["history"]
    return [event["point"] for event in history if "asked" in event]


def test_a_sweep_chooses_among_its_trials_and_one_that_cannot_work_does_not_end_it(home: Path, capsys):
    out = home / "sweep"
    told = sweep(home, out=out, search="grid", space=["max_segments=0,3", "negative=hardest,target-tile"])
    assert call("tune", **told) == "read 4 = written 2 + done before 0 + failed 2"
    by_state: dict[str, list[dict[str, Any]]] = {}
    for record in records(out).values():
        by_state.setdefault(record["state"], []).append(record)
    best = max(by_state["done"], key=lambda record: record["agreement"])
    assert all(0 <= record["recall"] <= 1 and len(record["curve"]) == 3 for record in by_state["done"])
    assert [(record["tables"], record["found"]) for record in by_state["done"]] == [(2, 2)] * 2
    assert {record["reason"] for record in by_state["failed"]} == {
        "--negative target-tile means nothing without --loss triplet; give it, or leave it out"
    }
    # pretraining's table of four segments serves three, and none
    assert [len(storage.tables(home / name, "features")) for name in ("source", "target")] == [1, 1]
    (checkpoint,) = (path for path in (out / outcomes.TRIALS).iterdir() if path.is_dir())
    verdict = json.loads((checkpoint / "verdict.json").read_text())
    assert verdict["after"] == best["agreement"]
    html = (out / "report.html").read_text()
    assert "means nothing without --loss triplet" in html
    assert "4 of 4 features tables were there" in html

    adapt = from_command_line(config.AdaptConfig, ["--config", str(out / "chosen.json"), "--out", "x"], "adapt")
    learnt = json.loads((checkpoint / "checkpoint.json").read_text())["settings"]
    assert (adapt.segments, adapt.steps, adapt.negative) == (learnt["segments"], 4, "hardest")

    told_on_stdout = capsys.readouterr().out.splitlines()
    assert told_on_stdout[-1:] == ["read 4 = written 2 + done before 0 + failed 2"] == told_on_stdout
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*.json")}
    assert call("tune", **told) == "read 4 = written 0 + done before 2 + failed 2"
    assert {path for path, then in kept.items() if path.stat().st_mtime_ns != then} <= {out / "chosen.json"}
    with pytest.raises(ConfigError, match="holds a sweep with steps=4, now steps=5; give another --out"):
        call("tune", **told | {"steps": 5})


def test_what_cannot_be_searched_is_refused_before_any_work(home: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tune.Tuner, "fit", lambda self: pytest.fail("it began"))
    for settings, message in (
        ({"space": ["ratio=0..3"]}, "--space ratio=0..3: Input should be greater than 0"),
        ({"search": "grid", "space": ["head_lr=1e-5..1e-3"]}, "a grid wants points"),
        ({"target": tmp_path}, "has 0 tiles of split valid, 8 wanted"),
        ({"out": home / "source"}, "is there and holds no sweep; give another --out"),
        (
            {"concurrent": 10**6},
            r"--concurrent 1000000 times --workers 1 want 1 CPU each, and their trial a trace, this",
        ),
        ({"workers": CPUS}, rf"--concurrent 1 times --workers {CPUS} want 1 CPU each, and their trial a trace, this"),
        ({"pace": "none", "space": ["pace_start=0.1..0.9"]}, "--space pace_start means nothing with --pace none"),
    ):
        with pytest.raises(ConfigError, match=message):
            call("tune", **sweep(home, out=tmp_path / "out") | settings)


def program(home: Path, failpoint: str, timeout_s: float = 300, **settings: Any) -> subprocess.CompletedProcess[str]:
    """`tune` in a process, and on a Ray, of its own."""
    told = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    if failpoint:
        once = tempfile.mkdtemp(prefix="once-", dir=home)
        told |= {"URBANCROSS_FAILPOINTS": failpoint, "URBANCROSS_FAILPOINTS_ONCE": once}
    flags = []
    for name, value in ({"workers": 1} | settings).items():
        for each in value if isinstance(value, list) else [value]:
            flags += [f"--{name.replace('_', '-')}", str(each)]
    command = [sys.executable, "-c", PROGRAM, "tune", *flags]
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=timeout_s)


def test_a_driver_that_is_killed_half_way_ends_with_the_trials_of_an_unbroken_one(home: Path):
    told = sweep(home, budget="3", space=["max_segments=0..3", "ratio=1..3", "pace=none,linear"])
    whole, broken = home / "whole", home / "broken"
    assert call("tune", out=whole, **told) == "read 3 = written 3 + done before 0 + failed 0"
    killed = program(home, "tune.told:2=kill", out=broken, **told)
    assert killed.returncode == -9, killed.stderr
    before = {path: path.stat().st_mtime_ns for path in (broken / outcomes.TRIALS).glob("*.json")}
    assert len(before) == 2
    assert tuning.fits_together(broken / tuning.STATE / "001")  # Ray Tune goes on from its own state
    done = program(home, "", out=broken, **told)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "read 3 = written 1 + done before 2 + failed 0"
    assert asked(broken) == asked(whole)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was done stays done
    measured = [
        {key: (record["agreement"], record["recall"], record["embeddings"]) for key, record in records(out).items()}
        for out in (whole, broken)
    ]
    assert measured[0] == measured[1]
    chosen = [json.loads((out / outcomes.CHOSEN).read_text()) for out in (whole, broken)]
    assert chosen[0] == chosen[1]


def test_a_sweep_without_ray_tunes_own_state_goes_on_from_what_it_wrote_down_itself(home: Path):
    told = sweep(home, out=home / "bare", search="random", space=["ratio=1..9"])
    assert call("tune", budget="1", **told) == "read 1 = written 1 + done before 0 + failed 0"
    storage.remove_folder(home / "bare" / tuning.STATE)
    assert call("tune", budget="2", **told) == "read 2 = written 1 + done before 1 + failed 0"
    assert call("tune", budget="0.00001h", **told) == "read 2 = written 0 + done before 2 + failed 0"


def test_trials_that_diverge_are_recorded_with_their_reason_and_can_be_tried_again(home: Path):
    told = sweep(home, out=home / "diverge", search="grid", space=["head_lr=1e-4,1e30"])
    assert call("tune", **told) == "read 2 = written 1 + done before 0 + failed 1"
    (why,) = (record["reason"] for record in records(home / "diverge").values() if record["state"] == "failed")
    assert "the loss is nan" in why or "collapse" in why
    assert call("tune", **told, retry_failed=True) == "read 2 = written 0 + done before 1 + failed 1"


@pytest.mark.timeout(1200)  # four Ray Train runs, one after the other
def test_asha_stops_trials_that_fall_behind(home: Path):
    told = sweep(home, out=home / "asha", search="grid", space=["head_lr=1e-3,3e-4,1e-5,1e-6"])
    told |= {"scheduler": "asha", "steps": 8, "objective": "recall"}
    # Of the four CPUs of a machine with two cores: a stopped trial that kept its own would leave none for the third.
    done = program(home, "", timeout_s=900, cpus_per_worker=2, **told)
    assert done.returncode == 0, done.stderr
    states = [record["state"] for record in records(home / "asha").values()]
    assert len(states) == 4
    assert set(states) == {"done", "stopped"}, done.stdout
    stopped = [record for record in records(home / "asha").values() if record["state"] == "stopped"]
    assert all(record["step"] < 8 and record["recall"] is not None for record in stopped)
    assert not list((home / "asha" / outcomes.TRIALS).glob("*.unfinished"))
