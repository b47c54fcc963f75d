"""The Ray session that a verb works in: joined or started, and how it is interrupted."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from urbancross.errors import UrbanCrossError, WorkerError

OBJECT_STORE_BYTES = 512 << 20

MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""How workers take memory from glibc: what a step of training frees is kept for the next one, where it would go back to
the kernel and come again page by page; on one arena, since Ray trains on a thread that would have another. See
`benchmarks/training.py` for what it is worth."""


def connect() -> None:
    """Use the session there is, join the cluster of `RAY_ADDRESS` (set by `ray job submit`), or start a local one."""
    if not ray.is_initialized():
        _start()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # progress is told in tiles, by the watch
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def _start() -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side calls routine matters errors, on stderr
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    before = signal.getsignal(signal.SIGTERM)
    with _stderr_closed(), _in_one_line():  # where that C++ side says that it took the level
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
            for name, value in MEMORY.items():
                os.environ.setdefault(name, value)
            # Two logical CPUs more than cores: Ray's own short tasks must find one while actors hold the rest.
            cpus = (os.cpu_count() or 1) + 2
            ray.init(
                address="local", num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, **quiet
            )
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # a local Ray takes the signal for itself


@contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, SIGTERM ends it as Ctrl-C does: with `KeyboardInterrupt` in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises bare ones where its own processes do not come up in time
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise WorkerError(f"Ray did not start ({told[0][:200]}); run the same command again") from error


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


def own_error(error: BaseException) -> UrbanCrossError:
    """What a worker raised on purpose, out of what Ray wrapped it in; any other failure as one line."""
    seen: list[BaseException] = [error]
    for inner in seen:
        if isinstance(inner, UrbanCrossError):
            return inner
        further = [getattr(inner, "cause", None), inner.__cause__, *getattr(inner, "worker_failures", {}).values()]
        seen += [found for found in further if isinstance(found, BaseException) and found not in seen]
    return WorkerError(f"a worker stopped: {str(error).strip().splitlines()[-1]}; run the same command to go on")
