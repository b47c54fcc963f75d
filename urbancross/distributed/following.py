"""The driver's side of the watch: progress, news of workers that died, and what to do when all is silent."""

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from urbancross import runs, storage
from urbancross.distributed.watch import Watch
from urbancross.errors import StorageError
from urbancross.progress import Meter, meter, say
from urbancross.storage import Place

STARTING_S = 120.0  # what a worker may take to start, beside --stall-minutes

# The watch that this process used last, and in which Ray session: an actor takes a second to start.
_last: dict[str, Any] = {}


class Follower:
    """A thread of the driver that reads the watch: moves the meter and, where it is told how, acts on stalls."""

    def __init__(self, watch: Any, shown: Meter, limit_s: float | None = None, home: Place | None = None) -> None:
        self.watch, self.shown, self.limit_s, self.home = watch, shown, limit_s, home
        self.why: str | None = None  # why it has interrupted the main thread
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def _follow(self) -> None:
        last = False
        while not last and self.why is None:
            last = self.ended.wait(0.5)
            try:
                done, silent_s, at_work, news = ray.get(self.watch.progress.remote())
            except RayError:
                return  # the session is going; the main thread hears of it in its own way
            done = min(done, self.shown.total)  # work that was done twice counts once
            if done > self.shown.done:
                self.shown.add(done - self.shown.done)
            for line, stacks in news:
                say(f"{self.shown.what}: {line}" + (f"; {self.keep_stacks(stacks)}" if stacks else ""))
            # A worker ends itself at the limit and another one starts; silence beyond both means that none is at work.
            if self.limit_s is not None and silent_s > self.limit_s + STARTING_S and not last:
                self.give_up(at_work)

    def give_up(self, at_work: list[str]) -> None:
        told = "; at work were " + ", ".join(at_work[:5]) if at_work else "; no worker could start"
        have = ray.cluster_resources()
        self.why = (
            f"no step anywhere for {self.minutes} and more{told}; "
            f"Ray has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs; {self.keep_stacks(all_stacks())}; "
            "run the same command to go on, with fewer --workers if they do not fit"
        )
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    @property
    def minutes(self) -> str:
        return f"{(self.limit_s or 0) / 60:g} min"

    def keep_stacks(self, text: str) -> str:
        if self.home is None:
            return "no place for stacks"
        place = runs.new_run(self.home, "stall") / "stacks.txt"
        try:
            storage.replace(place, text.encode())
        except StorageError as error:
            return str(error)
        return f"stacks in {place}"


def all_stacks() -> str:
    """Where every thread of this process is."""
    frames = sys._current_frames()
    return "\n".join(
        f"Thread {thread.name}\n" + "".join(traceback.format_stack(frames[thread.ident]))
        for thread in threading.enumerate()
        if thread.ident in frames
    )


@contextmanager
def counted(what: str, total: int, unit: str = "tiles") -> Iterator[Any]:
    """Show progress while the block runs; yields the watch, whose `add.remote(count)` moves it."""
    with meter(what, total, unit) as shown, _following(Follower(_new_watch(), shown)) as following:
        yield following.watch


@contextmanager
def watched(archive: Place, table: str, total: int, limit_s: float) -> Iterator[Follower]:
    """Show a stage's progress while the block runs, and interrupt it when no worker makes a step for too long."""
    with (
        meter(f"{table} of {archive.name}", total) as shown,
        _following(Follower(_new_watch(), shown, limit_s, archive)) as following,
    ):
        yield following


def _new_watch() -> Any:
    """A watch that knows nothing: the last one of this Ray session, or a new actor on this node."""
    context = ray.get_runtime_context()
    session = (context.get_node_id(), context.get_job_id())  # a Ray that was started anew counts its jobs anew
    if _last.get("session") == session:
        with suppress(RayError):
            ray.get(_last["watch"].begin.remote())
            return _last["watch"]
    here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
    watch = ray.remote(num_cpus=0)(Watch).options(scheduling_strategy=here).remote()
    _last.update(session=session, watch=watch)
    return watch


@contextmanager
def _following(follower: Follower) -> Iterator[Follower]:
    follower.thread.start()
    try:
        yield follower
    finally:
        follower.ended.set()
        follower.thread.join(timeout=5)
