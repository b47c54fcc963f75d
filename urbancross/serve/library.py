"""Archives to ask, by the model that each is asked with; what they read and encode is kept for the next query."""

import itertools
import math
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from urbancross import storage, tables
from urbancross.archive import Answer, Archive, combined
from urbancross.errors import ConfigError, UrbanCrossError
from urbancross.evidence import AT_ONCE, MOST_PHRASES, Evidence, Hit, TextEncoder, with_phrases
from urbancross.index.exact import Found
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import DualEncoder
from urbancross.serve.asked import Asked
from urbancross.serve.newest import Newest
from urbancross.serve.refused import Refused
from urbancross.storage import Place

TEXTS = 20_000  # whose vectors are kept
PICTURES = 300  # uploads whose vectors are kept
FEW_PHRASES = 6  # of captions, new to a search, that are encoded while other searches wait
ROWS_BYTES = 256 << 20  # of rows of tables that are kept


class Remembering:
    """An encoder that one thread uses at a time, for tokenizers want that; it remembers texts.

    Threads that wait for it have their texts encoded together by the first of them.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self.inner, self.width = encoder, encoder.width
        self._turn, self._guard = threading.Lock(), threading.Lock()
        self._texts: Newest[np.ndarray] = Newest(TEXTS)
        self._wanted: dict[str, None] = {}
        self._here = 0  # threads that wait for texts

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        found = {text: vector for text in texts if (vector := self._texts.get(text)) is not None}
        while new := [text for text in texts if text not in found]:
            with self._guard:
                self._wanted.update(dict.fromkeys(new))
                self._here += 1
            try:
                with self._turn:
                    self._encode_wanted()
            finally:
                with self._guard:
                    self._here -= 1
            found |= {text: vector for text in new if (vector := self._texts.get(text)) is not None}
        return (
            np.stack([found[text] for text in texts]) if texts else np.empty((0, self.inner.vector_width), np.float32)
        )

    def _encode_wanted(self) -> None:
        with self._guard:
            texts, self._wanted = list(self._wanted), {}
        for text, vector in zip(texts, self.inner.encode_texts(texts) if texts else (), strict=True):
            self._texts.put(text, vector.copy())

    def affordable(self, phrases: list[str]) -> list[str]:
        """Those to compare with a query: while others wait, few that are not known yet."""
        most = FEW_PHRASES if self._here else MOST_PHRASES
        known = [self._texts.get(phrase) is not None for phrase in phrases]
        left = itertools.accumulate(not is_known for is_known in known)
        return [phrase for phrase, is_known, new in zip(phrases, known, left, strict=True) if is_known or new <= most]

    def encode_image_queries(self, images: Sequence[np.ndarray]) -> np.ndarray:
        with self._turn:
            return self.inner.encode_image_queries(images)

    def as_queries(self, vectors: np.ndarray) -> np.ndarray:
        with self._turn:
            return self.inner.as_queries(vectors)


class Rows:
    """Single rows of shards, read by the groups they lie in, which are kept."""

    def __init__(self, most_bytes: int = ROWS_BYTES) -> None:
        self._groups: Newest[pa.Table] = Newest(most_bytes)
        self._ends: Newest[np.ndarray] = Newest(100_000)

    def row(self, place: Place, columns: Sequence[str], row: int) -> dict[str, Any]:
        """As `storage.read_row`."""
        ends = self._ends.get(place)
        if ends is not None:
            group = int(np.searchsorted(ends, row, side="right"))
            kept = self._groups.get((place, group, *columns))
            if kept is not None:
                return _row(kept, row - (int(ends[group - 1]) if group else 0))
        with storage.parquet(place) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(counts)
            group = int(np.searchsorted(ends, row, side="right"))
            if group == len(counts) or set(columns) - set(file.schema_arrow.names):
                return storage.read_row(place, list(columns), row)  # which says what is wrong
            table = file.read_row_group(group, columns=list(columns))
        self._ends.put(place, ends)
        self._groups.put((place, group, *columns), table, table.nbytes)
        return _row(table, row - (int(ends[group - 1]) if group else 0))


def _row(table: pa.Table, row: int) -> dict[str, Any]:
    return table.slice(row, 1).to_pylist()[0]


class KeptEvidence(Evidence):
    """Evidence whose rows are read once; what joins the archive later is seen after a new start."""

    def __init__(self, archive: Place, segments: str | None, rows: Rows) -> None:
        super().__init__(archive, segments)
        self.rows = rows
        self._readers = ThreadPoolExecutor(AT_ONCE, "evidence")
        self._there: dict[tuple[str, str], bool] = {}

    def hits(self, found: Sequence[Found], query: np.ndarray, texts: TextEncoder | None = None) -> list[Hit]:
        hits = list(self._readers.map(lambda rank: self._hit(rank, found[rank - 1], query), range(1, len(found) + 1)))
        if isinstance(texts, Remembering):
            return with_phrases(hits, query, texts, texts.affordable)
        return hits if texts is None else with_phrases(hits, query, texts)

    def _row(self, table: str, shard: str, columns: list[str], row: int) -> dict[str, Any]:
        if columns == ["image"]:  # each is wanted once, as a rule, and they are large
            return super()._row(table, shard, columns, row)
        return self.rows.row(self.archive / table / shard, columns, row)

    def _has(self, table: str, shard: str) -> bool:
        if (table, shard) not in self._there:
            self._there[table, shard] = super()._has(table, shard)
        return self._there[table, shard]

    def _segments_table(self) -> str | None:
        return self._segments_of

    @cached_property
    def _segments_of(self) -> str | None:
        return super()._segments_table()

    def footprint(self, shard: str, row: int) -> bytes | None:
        """What a tile covers as WKB in degrees; None where it has no place."""
        return self._row("tiles", shard, ["geometry"], row)["geometry"]


class Served(Archive):
    """An archive for many threads.

    Attributes:
        key: what it goes by in a query.
        embedded: shards that have embeddings.
    """

    def __init__(self, place: str, table: str, checkpoint: str | None, device: str, rows: Rows) -> None:
        variant = table.partition("@")[2]
        super().__init__(place, embeddings=variant, checkpoint=checkpoint, device=device)
        self.key = variant
        self.evidence = self.kept = KeptEvidence(self.place, self.segments, rows)
        self.embedded = frozenset(storage.shards(self.place / self.table))
        self.remembering: Remembering | None = None

    @property
    def encoder(self) -> Any:
        if self.remembering is None:
            self.remembering = Remembering(checkpoints.load(self.model, self.device))
        return self.remembering

    def vector_of(self, number: int) -> np.ndarray:
        """A tile as a query `[D]`.

        Raises:
            Refused: there is no such tile, or it has no embedding.
        """
        address = self.kept.address(number)
        if address is None:
            raise Refused(422, f"there is no tile {number}: they are counted from 0 to {len(self) - 1}")
        if address[0] in self.embedded:
            try:
                return self.looks_of(number)
            except ConfigError:
                pass
        raise Refused(422, f"tile {number} has no embedding; choose another")


class Library:
    """
    Attributes:
        name: of the archive.
        archives: by key; the first is asked where a query names none.
    """

    def __init__(self, name: str, archives: Sequence[Served]) -> None:
        self.name, self.archives = name, {archive.key: archive for archive in archives}
        self.first = archives[0]
        self._uploads: Newest[dict[str, np.ndarray]] = Newest(PICTURES)

    def of(self, key: str | None) -> Served:
        """
        Raises:
            Refused: there is no such model.
        """
        if key is None:
            return self.first
        if key not in self.archives:
            raise Refused(422, f"model: want one of {', '.join(self.archives)}")
        return self.archives[key]

    def search(self, asked: Asked) -> tuple[Served, Answer]:
        """
        Raises:
            Refused: the query is none that can be answered.
        """
        archive = self.of(asked.model)
        filters = asked.filters
        wanted, unwanted = asked.wanted, asked.unwanted
        if not (wanted or asked.like or asked.pictures):
            raise Refused(422, "nothing to look for: give a text, a picture or a tile")
        if asked.segment_weight and archive.segments is None:
            raise Refused(422, f"segment_weight: there are no embeddings of segments by {archive.key}; leave it out")
        pictures = [self.picture(token, archive.key) for token in asked.pictures or ()]
        liked = [archive.vector_of(number) for number in asked.like or ()]
        unliked = [archive.vector_of(number) for number in asked.unlike or ()]
        texts = archive.encoder.encode_texts([*wanted, *unwanted])
        query = combined([*texts[: len(wanted)], *pictures, *liked], [*texts[len(wanted) :], *unliked])
        answer = archive.ask(query, filters, asked.segment_weight, asked.top, asked.is_text)
        return archive, replace(answer, hits=[finite(hit) for hit in answer.hits])

    def remember(self, pixels: np.ndarray) -> str:
        """Take a picture `[H, W, 3]` uint8 to search by, and return its token."""
        token = secrets.token_urlsafe(12)
        self._uploads.put(
            token, {key: archive.encoder.encode_image_queries([pixels])[0] for key, archive in self.archives.items()}
        )
        return token

    def picture(self, token: str, key: str) -> np.ndarray:
        """
        Raises:
            Refused: it is not remembered any more.
        """
        found = self._uploads.get(token)
        if found is None:
            raise Refused(422, "pictures: one is not remembered here any more; upload it again")
        return found[key]


def finite(hit: Hit) -> Hit:
    """A hit without numbers that JSON does not know."""
    gsd_m = hit.gsd_m if hit.gsd_m is not None and math.isfinite(hit.gsd_m) else None
    bounds = hit.bounds if hit.bounds is not None and all(map(math.isfinite, hit.bounds)) else None
    return replace(hit, gsd_m=gsd_m, bounds=bounds)


def opened(
    place: str, variants: Sequence[str] | None = None, given: Sequence[str] = (), device: str = "cpu"
) -> tuple[Library, list[str]]:
    """The archive, with a model for each of its tables of embeddings, loaded.

    Args:
        variants: of the tables; None: all whose model can be loaded.
        given: checkpoints to take where they made a table, whatever it says of where they lie.

    Returns:
        The library, and a line for each table that was left out.

    Raises:
        ConfigError: no archive; no table, or none that can be asked; one of `variants` cannot.
    """
    archive = storage.archive(place)
    by_weights = {checkpoints.resolve(name).fingerprint: name for name in given}
    found = variants or [
        name.partition("@")[2] for name in storage.tables(archive, "embeddings") if storage.shards(archive / name)
    ]
    if not found:
        tables.table_of(archive, "embeddings", None, "embeddings")  # says what to make
    rows, encoders = Rows(), dict[str, Remembering]()
    archives: list[Served] = []
    left_out: list[str] = []
    for variant in dict.fromkeys(found):
        table = tables.table_of(archive, "embeddings", variant, "embeddings")
        made_by = storage.made_by(storage.read_schema(archive / table / storage.shards(archive / table)[0]))
        weights = made_by.get("settings", {}).get("checkpoint", "")
        try:
            one = Served(place, table, by_weights.get(weights), device, rows)
            one.remembering = encoders.get(one.model.fingerprint)
            encoders[one.model.fingerprint] = one.encoder
        except UrbanCrossError as error:
            if variants:
                raise
            left_out.append(f"{table} is left out: {error}")
            continue
        archives.append(one)
    if not archives:
        raise ConfigError("; ".join(left_out))
    return Library(archive.name, archives), left_out
