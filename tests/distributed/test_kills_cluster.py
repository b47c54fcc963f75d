"""Kills on a cluster of three nodes: a node that is removed, and twenty seeds of random kills of runs and workers."""

import contextlib
import importlib.util
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from urbancross import storage

if "kills" not in sys.modules:
    spec = importlib.util.spec_from_file_location("kills", Path(__file__).with_name("kills.py"))
    sys.modules["kills"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["kills"])
kills = sys.modules["kills"]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SEEDS = range(20)
BALANCE = "read 60 = written 48 + done before 0 + skipped 6 + failed 6"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("whole") / "archive"
    kills.stand_in.make_archive(home, kills.SHARDS, kills.TILES)
    code, out, err = kills.ended(kills.start(home, "--workers", "1", RAY_ADDRESS=cluster.address))
    assert code == 0, err
    assert out.splitlines()[-1] == BALANCE
    return kills.digests(home)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    kills.stand_in.make_archive(tmp_path / "archive", kills.SHARDS, kills.TILES)
    return tmp_path / "archive"


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_killed_and_when_the_table_ends_as_if_nothing_was(
    seed: int, cluster: Cluster, archive: Path, whole: dict
):
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        began = time.time()
        run = kills.start(archive, "--pause", "0.05", RAY_ADDRESS=cluster.address)
        kills.until(lambda: kills.workers_since(began) or run.poll() is not None, "workers")  # noqa: B023
        time.sleep(rng.uniform(0, 2))
        victims = kills.workers_since(began)
        if victims and rng.random() < 0.5:
            with contextlib.suppress(psutil.Error):
                rng.choice(victims).kill()
            time.sleep(rng.uniform(0, 1))
        run.kill()
        run.communicate()
        assert kills.readable_rows(archive) == len(kills.digests(archive)) * kills.TILES
        assert kills.digests(archive).items() <= whole.items()
    code, out, err = kills.ended(kills.start(archive, RAY_ADDRESS=cluster.address))
    assert code == 0, err
    assert out.splitlines()[-1].startswith("read 60 = ")
    assert kills.digests(archive) == whole
    assert kills.readable_rows(archive) == kills.SHARDS * kills.TILES


def test_a_node_that_is_removed_costs_nothing(cluster: Cluster, archive: Path, whole: dict):
    run = kills.start(archive, "--pause", "0.3", "--workers", "3", RAY_ADDRESS=cluster.address)
    kills.until(lambda: storage.shards(archive / kills.TABLE), "the first shard")
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    code, out, err = kills.ended(run)
    assert code == 0, err
    assert out.splitlines()[-1] == BALANCE
    assert kills.digests(archive) == whole


def test_a_stage_whose_workers_would_take_the_whole_cluster_begins_with_what_fits(
    cluster: Cluster, archive: Path, whole: dict
):
    code, _, err = kills.ended(kills.start(archive, "--workers", "6", RAY_ADDRESS=cluster.address))
    assert code == 0, err
    assert "workers fit now, 1 CPU each; the cluster has" in err
    assert kills.digests(archive) == whole


def test_a_job_that_is_told_to_stop_on_a_cluster_ends_at_once(cluster: Cluster, archive: Path, whole: dict):
    run = kills.start(archive, "--pause", "0.3", RAY_ADDRESS=cluster.address)
    kills.until(lambda: storage.shards(archive / kills.TABLE), "the first shard")
    asked = time.monotonic()
    run.send_signal(signal.SIGTERM)
    code, _, err = kills.ended(run)
    assert code == 1, err
    assert time.monotonic() - asked < 20
    assert "stopped; run the same command again to go on" in err
