"""What must not grow with the archive, measured on processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


def test_the_drivers_memory_stays_flat_while_thousands_of_tiles_are_embedded(tmp_path: Path):
    script = ROOT / "benchmarks" / "embed_memory.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--tiles", "2000", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout[ran.stdout.index("{") :])
    assert told["rows"] == told["tiles"] == 2000
    assert told["balance"] == "read 2,000 = written 2,000 + done before 0 + failed 0"
    assert told["driver_mib_at_the_end"] < told["driver_mib_after_a_fifth"] + 40
