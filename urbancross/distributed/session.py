"""The Ray session that a verb works in, and how work on its actors shows itself here."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import ray
import ray.data

from urbancross.errors import ConfigError, UrbanCrossError, WorkerError
from urbancross.progress import Meter, meter

OBJECT_STORE_BYTES = 512 << 20


def connect() -> None:
    """Join the cluster of `RAY_ADDRESS` (set inside `ray job submit`), or start a local one; once per process."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side calls routine matters errors, on stderr
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with _stderr_closed():  # where that C++ side says that it took the level
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            # Two logical CPUs more than cores: Ray's own short tasks must find one while actors hold the rest.
            cpus = (os.cpu_count() or 1) + 2
            ray.init(
                address="local", num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, **quiet
            )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # progress is told in tiles, by `counted`
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


class Resources(Protocol):
    """What a verb asks of Ray; every settings model of a verb with actors has it."""

    @property
    def workers(self) -> int: ...
    @property
    def cpus_per_worker(self) -> float: ...
    @property
    def gpus_per_worker(self) -> float: ...


def require_resources(wanted: Resources) -> None:
    """Refuse what a session of our own can never give: Ray would wait for it, without a word. A cluster may grow.

    Raises:
        ConfigError: more CPUs or GPUs than there are.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    have = ray.cluster_resources()
    for kind, flag, each in (("CPU", "cpus", wanted.cpus_per_worker), ("GPU", "gpus", wanted.gpus_per_worker)):
        if each * wanted.workers > have.get(kind, 0):
            raise ConfigError(
                f"--workers {wanted.workers} with --{flag}-per-worker {each:g} want {each * wanted.workers:g} {kind}s, "
                f"this machine offers {have.get(kind, 0):g}; lower one of them"
            )


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Drop what is written to file descriptor 2 meanwhile; exceptions still come out."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Tally:
    """Counts units as actors get through them; only progress bars read it."""

    def __init__(self) -> None:
        self.done = 0

    def add(self, count: int) -> None:
        self.done += count

    def read(self) -> int:
        return self.done


@contextmanager
def counted(what: str, total: int, unit: str = "tiles") -> Iterator[Any]:
    """Show progress while the block runs; yields the actor whose `add.remote(count)` moves it."""
    tally = ray.remote(num_cpus=0)(Tally).remote()
    ended = threading.Event()
    with meter(what, total, unit) as shown:
        thread = threading.Thread(target=_follow, args=(tally, shown, ended), daemon=True)
        thread.start()
        try:
            yield tally
        finally:
            ended.set()
            thread.join(timeout=5)


def _follow(tally: Any, shown: Meter, ended: threading.Event) -> None:
    last = False
    while not last:
        last = ended.wait(0.5)
        done = min(ray.get(tally.read.remote()), shown.total)  # work that was done twice counts once
        if done > shown.done:
            shown.add(done - shown.done)


def own_error(error: BaseException) -> UrbanCrossError:
    """What a worker raised on purpose, out of what Ray wrapped it in; any other failure as one line."""
    seen: list[BaseException] = [error]
    for inner in seen:
        if isinstance(inner, UrbanCrossError):
            return inner
        further = [getattr(inner, "cause", None), inner.__cause__, *getattr(inner, "worker_failures", {}).values()]
        seen += [found for found in further if isinstance(found, BaseException) and found not in seen]
    return WorkerError(f"a worker stopped: {str(error).strip().splitlines()[-1]}; run the same command to go on")
