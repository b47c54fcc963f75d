"""Places where a test can kill, stop or break this process; nothing happens unless the environment says so.

    URBANCROSS_FAILPOINTS="shard.written=kill worker.batch:3=kill"   # name[:n]=action, at a process's n-th visit
    URBANCROSS_FAILPOINTS_ONCE=/some/folder                     # each of them fires once over all processes

Actions: `kill` (SIGKILL), `kill-run` (the process whose number is in the folder's `driver.pid`, then this one), `stop`
(SIGSTOP), `segfault`, `full` (no space left on device), `wait` (sleep for an hour).
"""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path


def hit(name: str) -> None:
    """Say that the code has come to the failpoint `name`.

    Raises:
        OSError: the environment asks for `full` here.
    """
    if _ARMED and name in _ARMED:
        visit, action = _ARMED[name]
        _visits[name] += 1
        if _visits[name] >= visit and _first_to_fire(name):
            _act(action)


def writing(name: str, moment: str) -> None:
    """A failpoint of writing: `shard.<moment>` for a shard, `object.<moment>` for any other object."""
    hit(f"{'shard' if name.endswith('.parquet') else 'object'}.{moment}")


def _act(action: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill-run":
            os.kill(int((Path(_ONCE) / "driver.pid").read_text()), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "wait":
            time.sleep(3600)
        case _:
            raise ValueError(f"URBANCROSS_FAILPOINTS: no action {action}")


def _first_to_fire(name: str) -> bool:
    if not _ONCE:
        return True
    try:
        os.close(os.open(Path(_ONCE) / f"{name}.fired", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _armed(told: str) -> dict[str, tuple[int, str]]:
    armed = {}
    for part in told.split():
        place, _, action = part.partition("=")
        name, _, visit = place.partition(":")
        armed[name] = (int(visit or 1), action)
    return armed


_ARMED = _armed(os.environ.get("URBANCROSS_FAILPOINTS", ""))
_ONCE = os.environ.get("URBANCROSS_FAILPOINTS_ONCE", "")
_visits: Counter[str] = Counter()
