import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from urbancross.failpoints import hit; [hit('x') for _ in range(3)]; print('through')"


@pytest.mark.parametrize(
    ("armed", "code", "out"),
    [("", 0, "through\n"), ("y=kill", 0, "through\n"), ("x=kill", -9, ""), ("x:4=kill", 0, "through\n"),
     ("x:3=segfault", -11, "")],
)  # fmt: skip
def test_a_failpoint_acts_only_where_and_when_it_is_armed(armed: str, code: int, out: str):
    ran = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={"URBANCROSS_FAILPOINTS": armed}
    )
    assert (ran.returncode, ran.stdout) == (code, out)


def test_a_failpoint_fires_once_over_all_processes(tmp_path: Path):
    told = {"URBANCROSS_FAILPOINTS": "x=kill", "URBANCROSS_FAILPOINTS_ONCE": str(tmp_path)}
    codes = [subprocess.run([sys.executable, "-c", CODE], capture_output=True, env=told).returncode for _ in range(2)]
    assert codes == [-9, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.fired"]
