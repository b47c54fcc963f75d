"""`doctor`: what `urbancross.doctor` finds on this machine, and what Ray says of every node."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from urbancross import doctor, storage
from urbancross.config import CaptionConfig, DoctorConfig
from urbancross.distributed import captioning
from urbancross.distributed.session import connect
from urbancross.doctor import Finding
from urbancross.errors import NotReadyError
from urbancross.progress import GIB, count

DRIVER = Path("/proc/driver/nvidia/version")
ANSWER_S = 60.0  # in which a node has to say what it is
FEWEST_OBJECTS, ENOUGH_OBJECTS = GIB // 8, GIB // 2  # of a node; tables do not go through Ray's store, names do
COLOURS = {"ok": "green", "note": "yellow", "amiss": "red"}


def run(config: DoctorConfig) -> None:
    """
    Raises:
        NotReadyError: something is amiss.
    """
    found = [*doctor.of_this_machine(), doctor.model(config.checkpoint)]
    if config.sam is not None:
        found.append(doctor.sam_weights(config.sam))
    if config.captioner is not None:
        found.append(captioner(config.captioner))
    if config.archive is not None:
        found.append(doctor.archive(config.archive))
    found.append(doctor.tried("Ray", session))
    if found[-1].state != "amiss":
        found += nodes(config)
    if config.json_:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        show(found)
    amiss = [finding.what for finding in found if finding.state == "amiss"]
    if amiss:
        raise NotReadyError(f"amiss: {', '.join(amiss)}; what to do stands beside each")


def captioner(model: str) -> Finding:
    what = f"captioner {model}"

    def look() -> Finding:
        place, told = captioning.resolve(model, CaptionConfig(archive="", engine="vllm", model=model))
        if Path(place).is_dir():
            return Finding(what, "ok", f"a folder with a model, {told}")
        return Finding(what, "note", "a name of the hub, asked for when vLLM begins", f"hf download {model}")

    return doctor.tried(what, look)


def session() -> Finding:
    """The Ray session that a verb would work in."""
    connect()
    have, each = ray.cluster_resources(), [node["Resources"].get("object_store_memory", 0) for node in alive()]
    parts = [count(len(each), "node"), count(have.get("CPU", 0), "CPU"), count(have.get("GPU", 0), "GPU")]
    told = ", ".join([*parts, f"{sum(each) / GIB:.1f} GiB for objects"])
    if min(each) < ENOUGH_OBJECTS:
        state: Any = "amiss" if min(each) < FEWEST_OBJECTS else "note"
        told += f", {min(each) / GIB:.2f} on the node with least"
        return Finding("Ray", state, told, "ray start --object-store-memory, on that node")
    return Finding("Ray", "ok", told)


def alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


class Seen(NamedTuple):
    """What a node says of itself.

    Attributes:
        devices: GPUs that it has.
        driver: whether NVIDIA's is loaded.
        wrong: what its own doctor finds that is not well; of this node it stands above already.
    """

    versions: dict[str, str]
    devices: int
    driver: bool
    wrong: tuple[Finding, ...] = ()


def nodes(config: DoctorConfig) -> list[Finding]:
    """Every node has the versions of this process, drivers of its GPUs, of which Ray knows, memory, and the archive."""
    here, found, asked = doctor.versions(), [], []
    archive = None if config.archive is None else str(storage.place(config.archive))
    for node in alive():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        gpus = int(node["Resources"].get("GPU", 0))
        remote = ray.remote(num_cpus=0)(look).options(scheduling_strategy=there)
        is_here = node["NodeID"] == ray.get_runtime_context().get_node_id()
        asked.append((f"node {node['NodeManagerAddress']}", remote.remote(archive, is_here), gpus))
    for what, answer, gpus in asked:
        try:
            told = ray.get(answer, timeout=ANSWER_S)
        except RayError as error:
            found.append(Finding(what, "amiss", f"{type(error).__name__}: no answer", "ray status; look at its log"))
            continue
        found.append(judge(what, here, told, gpus))
        found += [replace(each, what=f"{what}: {each.what}") for each in told.wrong]
    return found


def look(archive: str | None, is_here: bool) -> Seen:
    """On a node: its versions, devices and driver, and what is not well with it."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    wrong: list[Finding] = []
    if not is_here:
        wrong = [doctor.memory(), doctor.shared_memory(), doctor.disk()]
        wrong += [] if archive is None else [doctor.archive(archive)]
    return Seen(doctor.versions(), devices, DRIVER.is_file(), tuple(each for each in wrong if each.state != "ok"))


def judge(what: str, here: dict[str, str], there: Seen, gpus: int) -> Finding:
    """
    Args:
        here: versions.
        gpus: those that Ray gives away.
    """
    other = [
        f"{name} {there.versions.get(name, 'none')} (here {found})"
        for name, found in here.items()
        if there.versions.get(name) != found
    ]
    if other:
        return Finding(what, "amiss", ", ".join(other), "give all nodes one image, or one runtime environment")
    if there.devices > gpus:
        told = f"{count(there.devices, 'GPU')}, of which Ray knows {gpus or 'none'}"
        return Finding(what, "note" if gpus else "amiss", told, "ray start --num-gpus, on that node")
    if gpus and not there.driver:
        told = f"{count(gpus, 'GPU')} by Ray's word, and no driver of NVIDIA's"
        return Finding(what, "note", told, "nvidia-smi; install the driver, or ray start without --num-gpus")
    return Finding(what, "ok", f"the same versions, {count(gpus, 'GPU')}")


def show(found: list[Finding]) -> None:
    table = Table("", "", "what is there", "what to do")
    for finding in found:
        state = f"[{COLOURS[finding.state]}]{finding.state}[/]"
        table.add_row(state, *map(escape, (finding.what, finding.told, finding.do)))
    Console(width=None if Console().is_terminal else 160).print(table)
