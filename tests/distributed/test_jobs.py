"""Verbs over `ray job submit`: same flags, the balance in the log, the failure as an exit code."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import LocalCluster, local_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("head"), cpus=4) as cluster:
        yield cluster


def test_a_submitted_verb_ends_with_its_balance(cluster: LocalCluster, captioned_set: Path, tmp_path: Path):
    archive = str(tmp_path / "archive")
    ingest = cluster.submit("jobs/ingest.py", "--source", str(captioned_set), "--archive", archive, "--domain", "here")
    assert ingest.returncode == 0, ingest.stdout + ingest.stderr
    assert "read 30 = written 28 + done before 0 + failed 2" in ingest.stdout
    segment = cluster.submit("jobs/segment.py", "--archive", archive, "--engine", "grid", "--max-area", "1")
    assert segment.returncode == 0, segment.stdout + segment.stderr
    assert "read 30 = written 28 + done before 0 + skipped 2 + failed 0" in segment.stdout


def test_a_submitted_verb_that_cannot_work_fails_with_one_line(cluster: LocalCluster, tmp_path: Path):
    job = cluster.submit("jobs/segment.py", "--archive", str(tmp_path / "nowhere"))
    assert job.returncode != 0
    assert "jobs/segment.py: --archive" in job.stdout
    assert "no such folder; check the path, or make it first" in job.stdout
    assert "Traceback" not in job.stdout
