"""What one worker asks of Ray, and how many fit in the session there is."""

import os
from typing import Any

import ray

from urbancross.config import WorkersConfig
from urbancross.errors import ConfigError
from urbancross.progress import GIB, count, say

TRACE = 0.001  # of a node's kind of accelerator: names the node, takes nothing of it
FLAGS = {"CPU": "--cpus-per-worker", "GPU": "--gpus-per-worker", "memory": "--memory-gib-per-worker"}


def asked(wanted: WorkersConfig) -> dict[str, float]:
    """By Ray's names of resources; what is not asked for is left out."""
    told = {
        "CPU": wanted.cpus_per_worker,
        "GPU": wanted.gpus_per_worker,
        "memory": wanted.memory_gib_per_worker * GIB,
        f"accelerator_type:{wanted.accelerator}": TRACE if wanted.accelerator else 0,
    }
    return {kind: amount for kind, amount in told.items() if amount}


def options(wanted: WorkersConfig) -> dict[str, Any]:
    """What an actor asks for, as Ray's functions take it."""
    told = asked(wanted)
    plain = {"num_cpus": told.pop("CPU", 0), "num_gpus": told.pop("GPU", 0), "memory": told.pop("memory", None)}
    return plain | ({"resources": told} if told else {})


def may_grow() -> bool:
    """Whether this is a cluster, which nodes may join; not a session of our own."""
    return bool(os.environ.get("RAY_ADDRESS"))


def require_resources(wanted: WorkersConfig, concurrent: int | None = None) -> None:
    """Refuse what a session of our own can never give: Ray would wait for it, without a word. A cluster may grow.

    Args:
        concurrent: of a sweep, trials at once, each with workers of its own, and with a trace of a CPU for itself.

    Raises:
        ConfigError: more than there is.
    """
    if may_grow():
        return
    have = ray.cluster_resources()
    times, lower = ("", "") if concurrent is None else (f"--concurrent {concurrent} times ", "--concurrent, ")
    for kind, each in asked(wanted).items():
        trace = TRACE if concurrent is not None and kind == "CPU" else 0.0
        if (each * wanted.workers + trace) * (concurrent or 1) > have.get(kind, 0):
            wants = _words({kind: each}) + (" each, and their trial a trace," if trace else " each,")
            raise ConfigError(
                f"{times}--workers {wanted.workers} want {wants} this machine offers "
                f"{_words({kind: have.get(kind, 0)})}; lower {lower}--workers or {FLAGS.get(kind, '--accelerator')}"
            )


def workers_that_fit(wanted: WorkersConfig, shards: int) -> tuple[int, int]:
    """How many workers to begin with, and how many at most, with a word where it is less than was asked for.

    A session of our own keeps a CPU free of workers, for Ray's own short tasks. On a cluster the rest may join later.

    Raises:
        ConfigError: not one worker fits on this machine.
    """
    most = min(wanted.workers, shards)
    have = ray.cluster_resources()
    spare = {"CPU": 0.0 if may_grow() else 1.0}
    each = asked(wanted)
    fit = min(int((have.get(kind, 0) - spare.get(kind, 0)) / amount) for kind, amount in each.items())
    if fit >= most:
        return most, most
    wants, offer = _words(each), _words({kind: have.get(kind, 0) for kind in ("CPU", *each)})
    if may_grow():
        say(f"note: {fit} of {most} workers fit now, {wants} each; the cluster has {offer}; others join as nodes do")
        return max(fit, 1), most
    if fit < 1:
        flags = " or ".join(FLAGS.get(kind, "--accelerator") for kind in each)
        raise ConfigError(f"a worker wants {wants}, this machine offers {offer}, one CPU stays free; lower {flags}")
    say(f"note: {fit} workers instead of {most}: each wants {wants}, this machine offers {offer}, one CPU stays free")
    return fit, fit


def _words(resources: dict[str, float]) -> str:
    """CPUs, GPUs, memory and a kind of accelerator, joined by `and`."""
    told = []
    for kind, amount in resources.items():
        if kind == "memory":
            told.append(f"{amount / GIB:.3g} GiB of memory")
        elif kind.startswith("accelerator_type:"):
            told.append(f"{'an' if amount else 'no'} accelerator {kind.partition(':')[2]}")
        else:
            told.append(count(amount, kind))
    return " and ".join(told)
