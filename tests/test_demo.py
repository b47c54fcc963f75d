"""`urbancross demo` on a small drawn world: as a user runs it, twice; and as a job on a cluster that loses a node."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from local_cluster import kill_node, local_cluster, until, workers_of

from urbancross.config import DemoConfig
from urbancross.demo import refuse_other_demo
from urbancross.errors import ConfigError

FLAGS = ["--scenes", "3", "--segments", "grid", "--workers", "1"]


def demo(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "urbancross.cli", "demo", "--out", str(out), *FLAGS]
    return subprocess.run(command, capture_output=True, text=True, timeout=700)


def digests(home: Path) -> dict[str, str]:
    """Of every shard and of both models' weights, by name."""
    found = [*home.glob("*land/*/part-*.parquet"), *home.glob("*/model.safetensors")]
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every demo of this file runs, one after the other, for tables name their sources."""
    return tmp_path_factory.mktemp("demo") / "home"


@pytest.fixture(scope="module")
def first(home: Path) -> subprocess.CompletedProcess[str]:
    return demo(home)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_runs_to_its_report_and_a_second_run_finds_it_done(
    home: Path, first: subprocess.CompletedProcess[str]
):
    assert first.returncode == 0, first.stderr
    assert "source only" in first.stdout
    assert "adapted" in first.stdout
    assert (home / "report.html").stat().st_size > 100_000
    for name in ("source-only", "adapted"):
        metrics = json.loads((home / f"metrics-{name}.json").read_text())
        assert metrics["gallery"]["tiles"] == 36
        assert metrics["mR"] > metrics["chance_mR"]
    for balance in home.glob("*/runs/*/balance.json"):
        told = json.loads(balance.read_text())
        assert told["read"] == told["written"] + told["done_before"] + told["skipped"] + told["failed"]
    again = demo(home)
    assert again.returncode == 0, again.stderr
    assert "read 108 = written 0 + done before 108 + failed 0" in again.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_as_a_job_on_a_cluster_that_loses_a_node_ends_with_the_tables_of_an_unbroken_local_run(
    home: Path, first: subprocess.CompletedProcess[str], tmp_path: Path
):
    assert first.returncode == 0, first.stderr
    local = home.rename(home.with_name("local"))
    shutil.copytree(local / "world", home / "world")  # with its times, which the plan holds
    with local_cluster(tmp_path, cpus=0) as cluster:  # all work is done on nodes that can be lost
        nodes = [cluster.join(cpus=2), cluster.join(cpus=2)]
        job = cluster.begin("demo.py", "--out", str(home), *FLAGS)

        def loses_a_node() -> bool:
            """Kill the node that computes features, once one does."""
            begun = list(home.glob("northland/features@*/.lease.json"))
            at_work = [node for node in nodes if begun and workers_of(node, "ray::MapWorker")]
            if not at_work or len(at_work) > 1:  # one may still be busy ending what came before
                return False
            kill_node(at_work[0])
            return True

        until(loses_a_node, "no node began with features", 400, job)
        assert not list(home.glob("northland/features@*/part-*"))
        told, _ = job.communicate(timeout=700)
        assert job.returncode == 0, told
        leases = [json.loads(path.read_text()) for path in home.glob("*/*/.lease.json")]
        assert leases == [{"released": True}] * len(leases)
    assert digests(home) == digests(local)
    for name in ("source-only", "adapted"):
        found, wanted = (json.loads((place / f"metrics-{name}.json").read_text()) for place in (home, local))
        assert found == wanted


def test_a_demo_of_other_settings_is_refused_rather_than_mixed_in(tmp_path: Path):
    refuse_other_demo(tmp_path, DemoConfig(scenes=6))
    refuse_other_demo(tmp_path, DemoConfig(scenes=6, query="a lake"))
    with pytest.raises(ConfigError, match="holds a demo with scenes=6, now scenes=9; give another --out"):
        refuse_other_demo(tmp_path, DemoConfig(scenes=9))
