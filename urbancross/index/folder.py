"""An index as it lies in an archive, on disk or on S3, and searched.

    index@NAME/manifest.json             which files are the index, swapped in one step; all others are left-overs
    index@NAME/PART.facts.arrow          what is known of each vector's tile: `facts.FACTS`
    index@NAME/PART.tiles.npy            vectors [n, D]; PART.tiles.ID.codes their codes
    index@NAME/PART.segments.npy         likewise of segments; PART.segments.owners.npy the tile of each, in the part
    index@NAME/ID.tiles.projection.npy   what codes are made with, by the training ID

A file is never written again, so those of S3 are fetched once to a machine and mapped from there.
"""

import io
import mmap
from typing import Any

import numpy as np
import pyarrow as pa

from urbancross import storage
from urbancross.errors import ConfigError
from urbancross.index.codes import Codes
from urbancross.index.exact import Candidates, Found, best_of, first, fused
from urbancross.index.facts import FACTS, Filters
from urbancross.index.vectors import Vectors
from urbancross.storage import Place

MANIFEST = "manifest.json"
FORMAT = 1
EXACT = "exact"


def folder_of(archive: Place, embeddings: str) -> Place:
    return archive / f"index@{embeddings.partition('@')[2]}"


class Index:
    """
    Attributes:
        manifest: see `building`.
        facts: `FACTS` of every tile that can be found, in order.
        tiles, segments: their vectors; no segments: None.
    """

    def __init__(self, folder: Place, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        parts = manifest["parts"]
        tables = [_table(_file(folder, f"{part['name']}.facts.arrow")) for part in parts]
        self.facts = pa.concat_tables(tables) if tables else FACTS.empty_table()
        self.starts = np.cumsum([0, *(table.num_rows for table in tables)])
        self._shards, self._rows = (self.facts[name].to_numpy() for name in ("shard", "row"))
        self.tiles = self._vectors("tiles")
        self.segments = self._vectors("segments") if manifest["segments"] else None

    @classmethod
    def at(cls, archive: Place, embeddings: str) -> "Index | None":
        """The index of a table of embeddings; None: there is none.

        Raises:
            ConfigError: it is of another version of urbancross, or a file of it is gone.
        """
        folder = folder_of(archive, embeddings)
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        try:
            return cls(folder, manifest)
        except FileNotFoundError:  # swapped while we read
            again = read_manifest(folder)
            if again is None or again["parts"] == manifest["parts"]:
                raise ConfigError(f"{folder} lacks files; make it again: urbancross index --rebuild") from None
            return cls(folder, again)

    def _vectors(self, kind: str) -> Vectors:
        names = [part["name"] for part in self.manifest["parts"]]
        stored = [_array(_file(self.folder, f"{name}.{kind}.npy")) for name in names]
        owners = None
        if kind == "segments":
            own = [_array(_file(self.folder, f"{name}.{kind}.owners.npy")) for name in names]
            owners = np.concatenate([of + start for of, start in zip(own, self.starts, strict=False)])
        return Vectors(stored, self._codes(kind), owners)

    def _codes(self, kind: str) -> Codes | None:
        if (trained := self.manifest["trained"].get(kind)) is None:
            return None
        projection = np.array(_array(_file(self.folder, f"{trained}.{kind}.projection.npy")))
        codes: Codes | None = None
        for part in self.manifest["parts"]:
            found = Codes.from_bytes(projection, _bytes(_file(self.folder, codes_name(part["name"], kind, trained))))
            if codes is None:
                codes = found
            else:
                codes.append(found)
        return codes

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def shards(self) -> set[str]:
        return {name for part in self.manifest["parts"] for name in part["shards"]}

    def best(self, query: np.ndarray, top: int, filters: Filters | None = None, weight: float = 0.0) -> Candidates:
        """As `exact.best`, of what the index holds.

        Args:
            weight: of the best segment in a tile's score.
        """
        allowed = filters.allowed(self.facts) if filters else None
        compared = len(self) if allowed is None else int(np.count_nonzero(allowed))
        ids, scores = self.nearest(query, top, allowed, weight)
        order = np.argsort(-scores, kind="stable")[:top]
        found = [Found(float(scores[i]), *self._address(int(ids[i]))) for i in order]
        return Candidates(first(found, top), compared)

    def nearest(
        self, query: np.ndarray, top: int, allowed: np.ndarray | None = None, weight: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ascending ids of tiles among which the best are, and their scores."""
        probes, rerank = self.manifest["probes"], max(self.manifest["rerank"], 4 * top)
        ids = self.tiles.near(query, rerank, probes, allowed, top)
        if not weight or self.segments is None or self.segments.owners is None:
            return ids, self.tiles.scores(ids, query)
        owners = self.segments.owners
        mine = None if allowed is None else allowed[owners]
        near = self.segments.near(query, rerank, probes, mine, top)
        ids = np.union1d(ids, owners[near])
        firsts, lasts = np.searchsorted(owners, ids), np.searchsorted(owners, ids + 1)
        of_tile = np.repeat(np.arange(len(ids)), lasts - firsts)
        rows = np.arange(len(of_tile)) - np.repeat(np.cumsum(lasts - firsts) - (lasts - firsts), lasts - firsts)
        scores = self.segments.scores(rows + np.repeat(firsts, lasts - firsts), query)
        return ids, fused(self.tiles.scores(ids, query), best_of(scores, lasts - firsts), weight)

    def _address(self, number: int) -> tuple[str, int]:
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return list(self.manifest["parts"][part]["shards"])[self._shards[number]], int(self._rows[number])


def read_manifest(folder: Place) -> dict[str, Any] | None:
    """
    Raises:
        ConfigError: it is of another version of urbancross.
    """
    manifest = storage.json_or_none(folder / MANIFEST, "index")
    if manifest is not None and (not isinstance(manifest, dict) or manifest.get("format") != FORMAT):
        raise ConfigError(f"{folder} is of another version of urbancross; make it again: urbancross index --rebuild")
    return manifest


def codes_name(part: str, kind: str, trained: str) -> str:
    return f"{part}.{kind}.{trained}.codes"


def files_of(manifest: dict[str, Any]) -> set[str]:
    """Names of all that a manifest is of."""
    parts = [part["name"] for part in manifest["parts"]]
    kept = [".facts.arrow", ".tiles.npy", *([".segments.npy", ".segments.owners.npy"] if manifest["segments"] else [])]
    found = {part + what for part in parts for what in kept}
    for kind, trained in manifest["trained"].items():
        found |= {f"{trained}.{kind}.projection.npy", *(codes_name(part, kind, trained) for part in parts)}
    return found


def array_bytes(values: np.ndarray) -> memoryview:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=False)
    return out.getbuffer()


def table_bytes(table: pa.Table) -> memoryview:
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getbuffer()


def _file(folder: Place, name: str) -> str:
    """Path of a file of the index on this machine.

    Raises:
        FileNotFoundError: it is not there.
    """
    return str(storage.fetched(folder / name))


def _array(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _table(path: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


def _bytes(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
