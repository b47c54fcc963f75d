"""`index`: a table of embeddings to an index, made anew or appended to, and published once it finds what it should."""

import platform
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from urbancross import lease, storage, tables
from urbancross.archive import Archive
from urbancross.captions.words import phrases
from urbancross.config import IndexConfig
from urbancross.errors import ConfigError, NotReadyError, SchemaError
from urbancross.failpoints import hit
from urbancross.index import gate
from urbancross.index.codes import SAMPLE_PER_LIST, Codes, lists_for
from urbancross.index.doubt import Calibration
from urbancross.index.facts import facts_of
from urbancross.index.folder import (
    EXACT,
    FORMAT,
    MANIFEST,
    Index,
    array_bytes,
    codes_name,
    files_of,
    folder_of,
    read_manifest,
    table_bytes,
)
from urbancross.index.gate import Queries
from urbancross.index.vectors import Vectors, floats, stored
from urbancross.progress import meter, say
from urbancross.runs import Balance
from urbancross.storage import PARALLEL_READS, Place

PART_ROWS = 131_072  # tiles of a part, about: a file of some 130 MB
GROWN = 4  # times the tiles that codes were trained with: they are trained anew
SHARDS_OF_QUERIES = 16


def run(config: IndexConfig) -> Balance:
    """
    Raises:
        ConfigError: no embeddings, or of several makers.
        NotReadyError: the index finds too little of what exact search finds; it is not published.
    """
    archive = Archive(config.archive, embeddings=config.embeddings, checkpoint=config.checkpoint, indexed=False)
    folder = folder_of(archive.place, archive.table)
    with lease.held(folder) as held:
        return Building(archive, folder, config).made(held)


class Building:
    """One run of `index`; what it writes counts for nothing before the manifest names it."""

    def __init__(self, archive: Archive, folder: Place, config: IndexConfig) -> None:
        self.archive, self.folder, self.config = archive, folder, config
        self.place, self.table = archive.place, archive.table
        self.segments = archive.segments if config.segments else None
        self.names = storage.shards(self.place / self.table)
        if not config.copies:
            tables.require_shards(self.place, "duplicates")
            tables.check_source(self.place, "duplicates", ["copy_of"], self.names)
        self.id = uuid.uuid4().hex[:8]

    def made(self, held: lease.Lease) -> Balance:
        counts = self._counts()
        total = sum(done for done, _ in counts.values())
        if not total:
            raise ConfigError(f"{self.place / self.table} has no vector; make it first: urbancross embed")
        self.kind: str = self.config.codes
        if self.kind == "auto":
            self.kind = EXACT if total < self.config.exact_below else "pq"
        wanted = {
            "format": FORMAT,
            "kind": self.kind,
            "embeddings": self.table,
            "checkpoint": self.archive.model.fingerprint,
            "segments": self.segments,
            "copies": self.config.copies,
        }
        published = storage.json_or_none(self.folder / MANIFEST, "index")
        old = None if self.config.rebuild else read_manifest(self.folder)
        if old is not None and (why := self._outdated_by(old, wanted, counts, total)):
            say(f"index: made anew, since {why}")
            old = None
        known = {name for part in old["parts"] for name in part["shards"]} if old else set()
        new = [name for name in self.names if name not in known]
        read = sum(rows for _, rows in counts.values())
        before = sum(part["rows"] for part in old["parts"]) if old else 0
        if old and not new:
            self._sweep(old)
            return Balance(read, 0, before, read - before)
        manifest: dict[str, Any] = wanted | {"parts": [*(old["parts"] if old else []), *self._parts(new, counts)]}
        manifest |= {"width": self.archive.encoder.vector_width, "made_with": _versions(), "seed": self.config.seed}
        manifest |= {key: (old or {}).get(key, value) for key, value in (("trained", {}), ("trained_with", total))}
        manifest |= {"probes": 0, "rerank": 0}
        if self.kind != EXACT:
            self._code(manifest, old)
        try:
            self._measure(manifest)
        except NotReadyError:
            self._sweep(published)
            raise
        held.check()
        hit("index.before-manifest")
        storage.write_json(self.folder / MANIFEST, manifest)
        self._sweep(manifest)
        held_now = sum(part["rows"] for part in manifest["parts"])
        return Balance(read, held_now - before, before, read - held_now)

    def _counts(self) -> dict[str, tuple[int, int]]:
        """Of each shard, its vectors and its rows.

        Raises:
            ConfigError: shards of several makers lie side by side.
        """

        def count(name: str) -> tuple[int, int, Any]:
            shard = self.place / self.table / name
            told = storage.read_shard(shard, ["failure"])
            maker = storage.made_by(told.schema)
            return told["failure"].null_count, told.num_rows, maker.get("settings", {}).get("checkpoint")

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            found = dict(zip(self.names, pool.map(count, self.names), strict=True))
        for name, (_, _, maker) in found.items():
            if maker != self.archive.model.fingerprint:
                raise ConfigError(
                    f"{self.place / self.table / name} was made by other weights than {self.archive.model.name}, and "
                    "vectors of two models cannot be compared; remove it and run urbancross embed again"
                )
        return {name: (done, rows) for name, (done, rows, _) in found.items()}

    def _parts(self, names: Sequence[str], counts: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
        parts = []
        beside = self._beside()
        with meter("index", sum(counts[name][0] for name in names)) as shown:
            for number, group in enumerate(_groups(names, counts)):
                part: dict[str, Any] = {
                    "name": f"{self.id}-{number:05d}",
                    "shards": {name: counts[name][0] for name in group},
                }
                part["beside"] = {table: len(have & set(group)) for table, have in beside.items()}
                parts.append(part | self._part(part["name"], group))
                shown.add(sum(counts[name][0] for name in group))
        return parts

    def _beside(self) -> dict[str, set[str]]:
        """Shards of the tables that add to what is known of a tile."""
        return {table: set(storage.shards(self.place / table)) for table in filter(None, ("geotags", self.segments))}

    def _outdated_by(
        self, old: dict[str, Any], wanted: dict[str, Any], counts: dict[str, tuple[int, int]], total: int
    ) -> str | None:
        """Why an index cannot be appended to; None: it can."""
        if why := _outdated(old, wanted, counts, total):
            return why
        if lacking := sorted(files_of(old) - set(storage.names(self.folder))):
            return f"{lacking[0]} is gone"
        for table, have in self._beside().items():
            for part in old["parts"]:
                if len(have & part["shards"].keys()) != part["beside"].get(table, 0):
                    return f"{table} has joined"
        return None

    def _part(self, part: str, names: Sequence[str]) -> dict[str, int]:
        """Write facts, vectors and segments of some shards."""
        kept, vectors, owners, segments, start = [], [], [], [], 0
        for number, name in enumerate(names):
            told = storage.read_shard(self.place / self.table / name, ["tile_id", "vector", "failure"])
            done = pc.is_null(told["failure"])
            if not self.config.copies:
                beside = tables.read_aligned(self.place, {self.table: [], "duplicates": ["copy_of"]}, name)
                done = pc.and_(done, pc.is_null(beside["duplicates"]["copy_of"]))
            facts = facts_of(self.place, [name], [number])
            if not facts["tile_id"].combine_chunks().equals(told["tile_id"].combine_chunks()):
                raise SchemaError(f"{self.place / self.table / name} does not hold the tiles of tiles/{name}")
            kept.append(facts.filter(done))
            vectors.append(_matrix(told["vector"].filter(done)))
            if self.segments is not None and storage.exists(self.place / self.segments / name):
                lists = storage.read_shard(self.place / self.segments / name, ["vectors"])["vectors"].filter(done)
                counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
                owners.append(np.repeat(np.arange(start, start + len(counts)), counts))
                flat = pa.concat_arrays(lists.chunks).flatten()
                segments.append(flat.flatten().to_numpy().reshape(-1, vectors[-1].shape[1]))
            start += len(vectors[-1])
        self._write(f"{part}.facts.arrow", table_bytes(pa.concat_tables(kept).unify_dictionaries().combine_chunks()))
        self._write(f"{part}.tiles.npy", array_bytes(self._kept(np.concatenate(vectors))))
        if self.segments is not None:
            width = vectors[0].shape[1]
            found = self._kept(np.concatenate([np.empty((0, width), np.float32), *segments]))
            self._write(f"{part}.segments.npy", array_bytes(found))
            self._write(f"{part}.segments.owners.npy", array_bytes(np.concatenate([np.empty(0, np.int64), *owners])))
        return {"rows": start, "segments": sum(map(len, segments))}

    def _kept(self, vectors: np.ndarray) -> np.ndarray:
        return vectors if self.kind == EXACT else stored(vectors)

    def _code(self, manifest: dict[str, Any], old: dict[str, Any] | None) -> None:
        """Write codes of the parts that have none, by the training of the old index or by one of their own."""
        bare = Index(self.folder, manifest | {"trained": {}})
        trained = Index(self.folder, old) if old else None
        for kind in ("tiles", "segments") if self.segments is not None else ("tiles",):
            vectors: Vectors = getattr(bare, kind)
            if vectors.few and kind not in manifest["trained"]:
                continue
            codes = getattr(trained, kind).codes if trained is not None and kind in manifest["trained"] else None
            first = len(old["parts"]) if codes is not None and old else 0
            if codes is None:
                lists = lists_for(len(vectors))
                say(f"index: training {lists:,} lists for {len(vectors):,} {kind}")
                rng = np.random.default_rng(self.config.seed)
                chosen = np.sort(rng.permutation(len(vectors))[: SAMPLE_PER_LIST * lists])
                codes = Codes.train(vectors.rows(chosen), manifest["kind"], lists, self.config.seed)
                manifest["trained"] = manifest["trained"] | {kind: self.id}
                self._write(f"{self.id}.{kind}.projection.npy", array_bytes(codes.projection))
            for part, rows in list(zip(manifest["parts"], vectors.parts, strict=True))[first:]:
                name = codes_name(part["name"], kind, manifest["trained"][kind])
                self._write(name, codes.of(floats(rows)).to_bytes())

    def _measure(self, manifest: dict[str, Any]) -> None:
        """Choose how far to look, and measure what is found.

        Raises:
            NotReadyError: too little.
        """
        index, texts = Index(self.folder, manifest), self._texts()
        manifest["recall"], manifest["nothing_matches"] = {}, None
        for kind in ("tiles", "segments"):
            vectors: Vectors | None = getattr(index, kind)
            if vectors is None or not len(vectors):
                continue
            asked = {"texts": Queries(texts, np.full(len(texts), -1))} if len(texts) else {}
            rng = np.random.default_rng(self.config.seed)
            own = np.sort(rng.permutation(len(vectors))[: self.config.queries])
            asked["tiles"] = Queries(self.archive.encoder.as_queries(vectors.rows(own)), own)
            wanted = {name: gate.wanted_of(vectors, queries) for name, queries in asked.items()}
            if vectors.codes is not None:
                chosen = gate.chosen(vectors, {name: found.half(0) for name, found in wanted.items()})
                manifest["probes"] = max(manifest["probes"], chosen[0])
                manifest["rerank"] = max(manifest["rerank"], chosen[1])
            looked = manifest["probes"], manifest["rerank"]
            found = gate.measured(vectors, {name: told.half(1) for name, told in wanted.items()}, *looked)
            manifest["recall"][kind] = found
            say(f"index: recall@{gate.TOP} of {kind} against exact search: {_in_words(found)}")
            if kind == "tiles" and "texts" in wanted and (told := Calibration.of(wanted["texts"].scores)):
                manifest["nothing_matches"] = asdict(told)
        least = min(value for found in manifest["recall"].values() for value in found.values())
        if least < self.config.min_recall:
            raise NotReadyError(
                f"the index of {self.place / self.table} finds {least:.3f} of what exact search finds, "
                f"{self.config.min_recall:g} wanted: it is not published; try --codes int8, or --codes exact"
            )

    def _texts(self) -> np.ndarray:
        """Vectors `[Q, D]` of captions and their phrases; of tiles of no train split, where there are enough."""
        table = next(
            (name for name in storage.tables(self.place, "captions") if storage.shards(self.place / name)), None
        )
        if table is None:
            say("note: no captions: recall is measured with tiles alone, and no search can say that nothing matches")
            return np.empty((0, 0), np.float32)
        have = [name for name in self.names if storage.exists(self.place / table / name)]
        rng = np.random.default_rng(self.config.seed)
        kept_back: list[str] = []
        others: list[str] = []
        for name in sorted(rng.permutation(have)[:SHARDS_OF_QUERIES]):
            shard = tables.read_aligned(self.place, {"tiles": ["split"], table: ["captions"]}, name)
            for split, captions in zip(
                shard["tiles"]["split"].to_pylist(), shard[table]["captions"].to_pylist(), strict=True
            ):
                (kept_back if split in ("valid", "test") else others).extend((captions or [])[:1])
        texts = kept_back if len(kept_back) >= self.config.queries else [*kept_back, *others]
        texts = [texts[i] for i in rng.permutation(len(texts))[: self.config.queries]]
        said = [text if i % 4 < 2 else str(rng.choice(phrases(text) or [text])) for i, text in enumerate(texts)]
        return self.archive.encoder.encode_texts(said) if said else np.empty((0, 0), np.float32)

    def _write(self, name: str, data: bytes | memoryview) -> None:
        storage.create(self.folder / name, data)

    def _sweep(self, manifest: dict[str, Any] | None) -> None:
        """Remove files that are no part of an index."""
        kept = {MANIFEST, *(files_of(manifest) if manifest else ())}
        for name in storage.names(self.folder):
            if not name.startswith(".") and name not in kept:
                storage.remove(self.folder / name)
        storage.sweep(self.folder)


def _outdated(
    old: dict[str, Any], wanted: dict[str, Any], counts: dict[str, tuple[int, int]], total: int
) -> str | None:
    """Why an index cannot be appended to, by what it says of itself."""
    for key, value in wanted.items():
        if old[key] != value:
            return f"it has {key} {old[key]}, now {key} {value}"
    for part in old["parts"]:
        for name, done in part["shards"].items():
            if name not in counts or counts[name][0] != done:
                return f"{name} changed"
    if wanted["kind"] != EXACT and total > GROWN * old["trained_with"]:
        return f"it has grown from {old['trained_with']:,} tiles to {total:,}"
    return None


def _groups(names: Sequence[str], counts: dict[str, tuple[int, int]]) -> Iterator[list[str]]:
    group: list[str] = []
    rows = 0
    for name in names:
        if group and rows + counts[name][0] > PART_ROWS:
            yield group
            group, rows = [], 0
        group.append(name)
        rows += counts[name][0]
    if group:
        yield group


def _matrix(vectors: pa.ChunkedArray) -> np.ndarray:
    return vectors.combine_chunks().flatten().to_numpy().reshape(len(vectors), vectors.type.list_size)


def _in_words(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


def _versions() -> dict[str, str]:
    return {"faiss": faiss.__version__, "numpy": np.__version__, "python": platform.python_version()}
