"""What the tests of kills share: the stand-in as a program and in this process, and the oracle."""

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pyarrow.dataset
import ray
from ray import cloudpickle

from urbancross import storage
from urbancross.runs import Balance

PROGRAM = Path(__file__).with_name("stand_in.py")
SHARDS, TILES = 6, 10
DEADLINE_S = 120


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stand_in", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stand_in"] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # workers cannot import it by name
    return module


stand_in = _load()
TABLE = stand_in.TABLE


def start(archive: Path, *flags: str, failpoints: str = "", **environment: str) -> subprocess.Popen[str]:
    """The stand-in as a program of its own, on the session that all tests share if there is one.

    Its failpoints fire once, and leave a mark in `archive/../once`.
    """
    once = archive.parent / "once"
    once.mkdir(exist_ok=True)
    told = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if ray.is_initialized():  # which saves each program the start of a Ray of its own
        told["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    told |= environment
    if failpoints:
        told |= {"URBANCROSS_FAILPOINTS": failpoints, "URBANCROSS_FAILPOINTS_ONCE": str(once)}
    command = [sys.executable, str(PROGRAM), "--archive", str(archive), *flags]
    return subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a program that has to end in time."""
    out, err = program.communicate(timeout=DEADLINE_S)
    return program.returncode, out, err


def resume(archive: Path, **settings: Any) -> Balance:
    """The same job in this process, on the session that all tests share."""
    return stand_in.run(stand_in.StandInConfig(archive=str(archive), **{"workers": 2, **settings}))


def digests(archive: Path) -> dict[str, str]:
    table = archive / TABLE
    return {name: hashlib.sha256((table / name).read_bytes()).hexdigest() for name in storage.shards(table)}


def until(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.02)


def readable_rows(archive: Path) -> int:
    """What a reader of another program makes of the table as it is now."""
    if not storage.shards(archive / TABLE):
        return 0
    return pyarrow.dataset.dataset(archive / TABLE, format="parquet").count_rows()


def check(archive: Path, whole: dict[str, str], balance: Balance) -> None:
    """The oracle: the same bytes as the unbroken run's, every tile accounted for, nothing half-written left."""
    assert digests(archive) == whole
    assert balance.balances
    assert balance.read == readable_rows(archive) == SHARDS * TILES
    assert [name for name in os.listdir(archive / TABLE) if name.endswith(".tmp")] == []


def workers_since(moment: float) -> list[psutil.Process]:
    """Workers of stages, in the sessions of this process, that started after a moment."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.create_time() >= moment and "MapBatches(Replica)" in " ".join(process.cmdline()):
                found.append(process)
    return found
