"""`urbancross demo` on a small drawn world, as a user runs it, twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from urbancross.config import DemoConfig
from urbancross.demo import refuse_other_demo
from urbancross.errors import ConfigError


def demo(out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "urbancross.cli",
        "demo",
        "--out",
        str(out),
        "--scenes",
        "3",
        "--segments",
        "grid",
        "--workers",
        "1",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=700)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_runs_to_its_report_and_a_second_run_finds_it_done(tmp_path: Path):
    first = demo(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "source only" in first.stdout
    assert "adapted" in first.stdout
    assert (tmp_path / "report.html").stat().st_size > 100_000
    for name in ("source-only", "adapted"):
        metrics = json.loads((tmp_path / f"metrics-{name}.json").read_text())
        assert metrics["gallery"]["tiles"] == 36
        assert metrics["mR"] > metrics["chance_mR"]
    for balance in tmp_path.glob("*/runs/*/balance.json"):
        told = json.loads(balance.read_text())
        assert told["read"] == told["written"] + told["done_before"] + told["skipped"] + told["failed"]
    again = demo(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "read 108 = written 0 + done before 108 + failed 0" in again.stdout


def test_a_demo_of_other_settings_is_refused_rather_than_mixed_in(tmp_path: Path):
    refuse_other_demo(tmp_path, DemoConfig(scenes=6))
    refuse_other_demo(tmp_path, DemoConfig(scenes=6, query="a lake"))
    with pytest.raises(ConfigError, match="holds a demo with scenes=6, now scenes=9; give another --out"):
        refuse_other_demo(tmp_path, DemoConfig(scenes=9))
