"""Archives to ask, by the model that each is asked with; what they read and encode is kept for the next query."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from urbancross import storage, tables
from urbancross.archive import Answer, Archive, combined
from urbancross.errors import ConfigError, UrbanCrossError
from urbancross.evidence import Hit
from urbancross.models import checkpoints
from urbancross.serve.asked import Asked
from urbancross.serve.kept import KeptEvidence, Rows
from urbancross.serve.newest import Newest
from urbancross.serve.refused import Refused
from urbancross.serve.remembering import Remembering

PICTURES = 300  # uploads whose vectors are kept


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
