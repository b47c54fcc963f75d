"""Verbs over `ray job submit`: same flags, the balance in the log, the failure as an exit code, and a stop."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import BIN, LocalCluster, local_cluster, until

from urbancross import cli, storage

# Submits every verb twice, with --help and with a flag that there is not, and prints how each ended and its log.
SUBMIT_ALL = """
import json, sys, time
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient()
jobs = {}
for verb in sys.argv[2:]:
    for flag in ("--help", "--no-such-flag"):
        jobs[verb, flag] = client.submit_job(entrypoint=f"{sys.executable} {sys.argv[1]}/{verb}.py {flag}")
        while sum(not client.get_job_status(job).is_terminal() for job in jobs.values()) >= 2:
            time.sleep(0.2)
while not all(client.get_job_status(job).is_terminal() for job in jobs.values()):
    time.sleep(0.2)
told = [(*key, client.get_job_status(job).value, client.get_job_logs(job)) for key, job in jobs.items()]
print(json.dumps(told))
"""

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


def test_every_verb_is_a_job(cluster: LocalCluster):
    command = [sys.executable, "-c", SUBMIT_ALL, str(Path(__file__).parents[2] / "jobs"), *cli.VERBS]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) == 2 * len(cli.VERBS)
    for verb, flag, status, log in told:
        assert status == ("SUCCEEDED" if flag == "--help" else "FAILED"), (verb, log)
        assert f"jobs/{verb}.py" in log, (verb, log)


def test_a_job_that_is_stopped_leaves_a_state_that_the_same_command_goes_on_from(
    cluster: LocalCluster, captioned_set: Path, tmp_path: Path
):
    archive = tmp_path / "archive"
    made = cluster.submit(
        "jobs/ingest.py", "--source", str(captioned_set), "--archive", str(archive), "--domain", "here",
        "--shard-tiles", "3",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout
    command = ["python", "jobs/segment.py", "--archive", str(archive), "--engine", "grid", "--max-area", "1"]
    # Its worker naps at the fourth batch, for an hour.
    nap = json.dumps({"env_vars": {"URBANCROSS_FAILPOINTS": "worker.batch:4=wait"}})
    submission = [BIN / "ray", "job", "submit", "--working-dir", ".", "--runtime-env-json", nap]
    submission += ["--submission-id", "stopped", "--", *command, "--workers", "1"]
    root = Path(__file__).parents[2]
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(submission, env=cluster.environment, cwd=root, stdout=log, stderr=log)
    table = archive / "segments@grid"
    until(lambda: len(storage.shards(table)) == 3, "three shards were not made", 120, job)
    stop = subprocess.run(
        [BIN / "ray", "job", "stop", "stopped"], env=cluster.environment, capture_output=True, text=True, timeout=120
    )
    assert stop.returncode == 0, stop.stdout + stop.stderr
    job.wait(timeout=60)
    said = (tmp_path / "log").read_text()
    assert "jobs/segment.py: stopped; run the same command again to go on" in said
    assert storage.read_json(table / ".lease.json", "lease")["released"]
    assert len(storage.shards(table)) == 3

    again = cluster.submit(*command[1:])
    assert again.returncode == 0, again.stdout
    assert "read 30 = written 20 + done before 9 + skipped 1 + failed 0" in again.stdout
    assert "segments@grid of archive: " in again.stdout  # progress
    runs = sorted(name for name in storage.names(archive / "runs") if name.endswith("-segment"))
    assert [storage.exists(archive / "runs" / name / "balance.json") for name in runs] == [False, True]
    for name in runs:
        assert {"config.json", "events.jsonl", "report.html"} <= set(storage.names(archive / "runs" / name))
