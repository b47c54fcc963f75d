"""`doctor`: what `urbancross.doctor` finds on this machine, and what Ray says of every node."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from urbancross import doctor
from urbancross.config import DoctorConfig
from urbancross.distributed.session import connect
from urbancross.doctor import Finding
from urbancross.errors import NotReadyError
from urbancross.progress import GIB, count

ANSWER_S = 60.0  # in which a node has to say what it is
COLOURS = {"ok": "green", "note": "yellow", "amiss": "red"}


def run(config: DoctorConfig) -> None:
    """
    Raises:
        NotReadyError: something is amiss.
    """
    found = [*doctor.of_this_machine(), doctor.model(config.checkpoint)]
    if config.archive is not None:
        found.append(doctor.archive(config.archive))
    found.append(doctor.tried("Ray", session))
    if found[-1].state == "ok":
        found += nodes()
    if config.json_:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        show(found)
    amiss = [finding.what for finding in found if finding.state == "amiss"]
    if amiss:
        raise NotReadyError(f"amiss: {', '.join(amiss)}; what to do stands beside each")


def session() -> Finding:
    """The Ray session that a verb would work in."""
    connect()
    have = ray.cluster_resources()
    objects = have.get("object_store_memory", 0) / GIB
    parts = [count(len(alive()), "node"), count(have.get("CPU", 0), "CPU"), count(have.get("GPU", 0), "GPU")]
    told = ", ".join([*parts, f"{objects:.1f} GiB for objects"])
    return Finding("Ray", "ok", told)


def alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def nodes() -> list[Finding]:
    """Every node has the versions of this process, and Ray knows of its GPUs."""
    here, found, asked = doctor.versions(), [], []
    for node in alive():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        gpus = int(node["Resources"].get("GPU", 0))
        remote = ray.remote(num_cpus=0)(look).options(scheduling_strategy=there)
        asked.append((f"node {node['NodeManagerAddress']}", remote.remote(), gpus))
    for what, answer, gpus in asked:
        try:
            told, devices = ray.get(answer, timeout=ANSWER_S)
        except RayError as error:
            found.append(Finding(what, "amiss", f"{type(error).__name__}: no answer", "ray status; look at its log"))
            continue
        found.append(judge(what, here, told, devices, gpus))
    return found


def look() -> tuple[dict[str, str], int]:
    """A node's versions, and how many NVIDIA devices it has."""
    return doctor.versions(), len(list(Path("/dev").glob("nvidia[0-9]*")))


def judge(what: str, here: dict[str, str], there: dict[str, str], devices: int, gpus: int) -> Finding:
    """
    Args:
        here, there: versions.
        devices: GPUs that the node has.
        gpus: those that Ray gives away.
    """
    other = [
        f"{name} {there.get(name, 'none')} (here {found})" for name, found in here.items() if there.get(name) != found
    ]
    if other:
        return Finding(what, "amiss", ", ".join(other), "give all nodes one image, or one runtime environment")
    if devices and not gpus:
        return Finding(
            what, "amiss", f"{count(devices, 'GPU')}, of which Ray knows none", "ray start --num-gpus, on that node"
        )
    return Finding(what, "ok", f"the same versions, {count(gpus, 'GPU')}")


def show(found: list[Finding]) -> None:
    table = Table("", "", "what is there", "what to do")
    for finding in found:
        state = f"[{COLOURS[finding.state]}]{finding.state}[/]"
        table.add_row(state, *map(escape, (finding.what, finding.told, finding.do)))
    Console(width=None if Console().is_terminal else 160).print(table)
