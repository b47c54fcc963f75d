"""A training whose worker, or whose driver, is killed in the middle ends with the bits of an unbroken one."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from urbancross import cli, storage
from urbancross.errors import ConfigError
from urbancross.stores.s3 import S3Path

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROGRAM = """
import os, sys
from pathlib import Path
from urbancross.cli import main
if os.environ.get("URBANCROSS_FAILPOINTS_ONCE"):
    Path(os.environ["URBANCROSS_FAILPOINTS_ONCE"], "driver.pid").write_text(str(os.getpid()))
main(sys.argv.pop(1))
"""


def program(verb: str, failpoints: str, home: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A verb in a process, and on a Ray, of its own; its failpoints fire once, whatever an earlier one left."""
    once = tempfile.mkdtemp(prefix="once-", dir=home)
    told = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    if failpoints:
        told |= {"URBANCROSS_FAILPOINTS": failpoints, "URBANCROSS_FAILPOINTS_ONCE": once}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-c", PROGRAM, verb, *flags]
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def home(captioned_set: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """An archive with features, and an unbroken pretraining."""
    home = tmp_path_factory.mktemp("resuming")
    call("ingest", source=captioned_set, archive=home / "a", domain="d", workers=1)
    call("pretrain", out=home / "whole", **learning(home))
    return home


def call(verb: str, **settings: Any) -> Any:
    """A verb in this process."""
    told = {name: str(value) if isinstance(value, Path | S3Path) else value for name, value in settings.items()}
    return cli.call(verb, cli.VERBS[verb].kind(**told))


def learning(home: Path) -> dict[str, Any]:
    """Without dropout, so that two workers learn what one does; `test_training` has it."""
    return {
        "archive": home / "a", "head_epochs": 6, "head_batch": 10, "width": 32, "checkpoint_steps": 2, "workers": 2,
        "dropout": 0.0,
    }  # fmt: skip


def same(one: Path, other: Path) -> bool:
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    events, theirs = ((folder / "events.jsonl").read_text() for folder in (one, other))
    return events == theirs and all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_worker_that_is_killed_costs_steps_and_changes_nothing(home: Path):
    done = program("pretrain", "training.step:8=kill", home, out=home / "worker", **learning(home))
    assert done.returncode == 0, done.stderr
    assert "pretrain: a worker died; the team starts anew, 1 of 2 times" in done.stderr
    assert same(home / "worker", home / "whole")
    assert not (home / "worker.unfinished").exists()


def test_a_run_that_is_killed_goes_on_with_the_same_command_and_no_other_on_s3_too(
    home: Path, bucket: Any, tmp_path: Path
):
    out = bucket / "models" / "run"
    done = program("pretrain", "training.step:8=kill-run", home, out=out, **learning(home))
    assert done.returncode == -9
    assert storage.names(bucket / "models") == ["run.unfinished"]
    assert storage.names(bucket / "models" / "run.unfinished") == ["checkpoint.json", "state.pt"]
    with pytest.raises(ConfigError, match=r"run\.unfinished was made with seed=0, now seed=5; give another --out"):
        call("pretrain", out=out, **learning(home) | {"seed": 5})
    done = program("pretrain", "", home, out=out, **learning(home))
    assert done.returncode == 0, done.stderr
    assert storage.names(bucket / "models") == ["run"]
    storage.fetch_folder(out, tmp_path / "run")
    assert same(tmp_path / "run", home / "whole")
    assert str(call("pretrain", out=out, **learning(home))).startswith("read 30 = written 0 + done before 20")


def test_a_team_that_shrinks_and_grows_between_starts_carries_on(home: Path):
    """Two workers, one, and two again: step follows step, and what is learnt is what two would have learnt."""
    for workers, failpoint, code in (
        (2, "training.step:4=kill-run", -9),
        (1, "training.step:5=kill-run", -9),
        (2, "", 0),
    ):
        done = program("pretrain", failpoint, home, out=home / "elastic", **learning(home) | {"workers": workers})
        assert done.returncode == code, done.stderr
    events, steady = (
        [json.loads(line) for line in (home / name / "events.jsonl").read_text().splitlines()]
        for name in ("elastic", "whole")
    )
    assert [event["step"] for event in events] == [event["step"] for event in steady]
    weights, others = (load_file(home / name / "model.safetensors") for name in ("elastic", "whole"))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=2e-3, atol=2e-3, msg=name)
