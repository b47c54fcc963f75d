"""An archive to ask: `Archive("A").search("a harbour with many boats")`. Its model is loaded once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from urbancross import globe, storage, tables
from urbancross.errors import ConfigError, TileError
from urbancross.evidence import Evidence, Hit
from urbancross.index.doubt import TILES, Calibration, Doubt
from urbancross.index.exact import Candidates, best, first
from urbancross.index.facts import Filters
from urbancross.index.folder import EXACT, Index
from urbancross.index.moments import told_span
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import DualEncoder
from urbancross.tiles import decode, read_image


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        hits: best first.
        compared: tiles that the filters left to look in.
        by: `exact`, or the codes of the index.
        doubt: whether anything matches at all; None: segments count, there are filters, the query is more than one
            text, or no index was calibrated.
    """

    hits: list[Hit]
    compared: int
    by: str
    doubt: Doubt | None = None


class Archive:
    """
    Args:
        place: a folder or an s3:// prefix.
        embeddings: variant of the embeddings table; needed where there are several.
        checkpoint: what made the embeddings; default: what their table names.
        device: where queries are encoded.
        indexed: search the index where there is one; shards that it lacks are compared in full.

    Attributes:
        table: name of the embeddings table.
        segments: name of the table of segment embeddings by the same weights; None: there is none.

    Raises:
        ConfigError: no archive, no embeddings, or other weights than those that made them.
    """

    def __init__(
        self,
        place: str,
        *,
        embeddings: str | None = None,
        checkpoint: str | None = None,
        device: str = "cpu",
        indexed: bool = True,
    ) -> None:
        self.place = storage.archive(place)
        self.table, maker = embeddings_table(self.place, embeddings)
        self.model = model_of(self.table, maker, checkpoint)
        if self.model.fingerprint != maker["settings"]["checkpoint"]:
            raise ConfigError(
                f"{self.table} was made by other weights than {self.model.name}; give the --checkpoint that made it, "
                "or embed again"
            )
        self.segments = tables.embeddings_by(self.place, self.model.fingerprint, "segment_embeddings")
        self.evidence = Evidence(self.place, self.segments)
        self.index = Index.at(self.place, self.table) if indexed else None
        if self.index is not None and self.index.manifest["checkpoint"] != self.model.fingerprint:
            raise ConfigError(
                f"{self.index.folder} was made of other vectors than those of {self.table}; make it again: urbancross "
                f"index --archive {place}"
            )
        known = self.index.shards if self.index else set()
        self._others = [name for name in storage.shards(self.place / self.table) if name not in known]
        self.device = device
        self._encoder: DualEncoder | None = None

    @property
    def encoder(self) -> DualEncoder:
        if self._encoder is None:
            self._encoder = checkpoints.load(self.model, self.device)
        return self._encoder

    def __len__(self) -> int:
        """Tiles, those that failed too."""
        return self.evidence.total

    def search(
        self,
        text: str | None = None,
        *,
        image: str | Path | np.ndarray | None = None,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        like: Sequence[int | str] = (),
        unlike: Sequence[int | str] = (),
        bbox: Sequence[float] | None = None,
        area: BaseGeometry | dict[str, Any] | None = None,
        since: str | None = None,
        until: str | None = None,
        domain: str | None = None,
        split: str | None = None,
        tags: Sequence[str] = (),
        segment_weight: float = 0.0,
        top: int = 10,
    ) -> Answer:
        """The tiles that fit a query best, each with its evidence.

        The query is the sum of what is wanted less half the sum of what is not, each of the same length.

        Args:
            text, plus, minus: texts; `minus` is what is not wanted.
            image: a picture: a file, or `[H, W, 3]` uint8.
            like, unlike: tiles, by id or by their number in the order of the archive.
            bbox: west, south, east, north in degrees; west > east across the antimeridian.
            area: a (multi)polygon in degrees, of shapely or as GeoJSON.
            since, until: ISO 8601, such as `2024-05`; the second is within.
            tags: `key=value`, or a key for any value; a tile has to have all of them.
            segment_weight: share of a tile's best segment in its score.

        Raises:
            ConfigError: nothing to look for, a tile that is not there, or an area that is none.
        """
        for name, told in (("plus", plus), ("minus", minus), ("like", like), ("unlike", unlike), ("tags", tags)):
            if isinstance(told, str):
                raise ConfigError(f"{name}: want a list, such as [{told!r}]")
        if top < 1:
            raise ConfigError(f"top {top}: want 1 or more")
        wanted = [said for said in (text or "", *plus) if said.strip()]
        texts = self.encoder.encode_texts([*wanted, *minus])
        terms = [*texts[: len(wanted)], *self._pictures(image), *(self.looks_of(tile) for tile in like)]
        against = [*texts[len(wanted) :], *(self.looks_of(tile) for tile in unlike)]
        if not terms:
            raise ConfigError(
                "nothing to look for: give a text, a picture or a tile; what is not wanted alone finds all"
            )
        query = combined(terms, against)
        filters = Filters(
            None if bbox is None else box_of(bbox),
            None if area is None else area_of(area),
            None if since is None else told_span(since, "--since"),
            None if until is None else told_span(until, "--until"),
            domain,
            split,
            tuple(tags),
        )
        is_text = len(wanted) == 1 and not (minus or image is not None or like or unlike)
        return self.ask(query, filters, segment_weight, top, is_text)

    def ask(
        self,
        query: np.ndarray,
        filters: Filters,
        segment_weight: float = 0.0,
        top: int = 10,
        is_text: bool = False,
    ) -> Answer:
        """As `search`, for a vector `[D]`.

        Args:
            is_text: it is of one text alone, as those were by which "nothing matches" was calibrated, over all tiles.

        Raises:
            ConfigError: a weight of segments, and there are no embeddings of them.
        """
        if segment_weight and self.segments is None:
            raise ConfigError(
                f"--segment-weight: {self.place} has no segment embeddings by {self.model.name}; make them with: "
                f"urbancross embed --archive {self.place} --checkpoint {self.model.name} --segments ..."
            )
        index = self.index
        if index is not None and segment_weight and index.manifest["segments"] != self.segments:
            index = None  # it was made without segments, or of others
        found = self._candidates(index, query, filters, segment_weight, max(top, TILES))
        doubt = None
        if index is not None and is_text and not filters and not segment_weight and found.found:
            told = index.manifest["nothing_matches"]
            doubt = Calibration(**told).judge(np.array([tile.score for tile in found.found])) if told else None
        hits = self.evidence.hits(found.found[:top], query, self.encoder)
        return Answer(hits, found.compared, index.kind if index else EXACT, doubt)

    def _candidates(
        self, index: Index | None, query: np.ndarray, filters: Filters, segment_weight: float, top: int
    ) -> Candidates:
        names = self._others if index else None
        parts = [best(self.place, self.table, query, top, filters, self.segments, segment_weight, names)]
        if index is not None:
            parts.append(index.best(query, top, filters, segment_weight))
        found = first([tile for part in parts for tile in part.found], top)
        return Candidates(found, sum(part.compared for part in parts))

    def _pictures(self, image: str | Path | np.ndarray | None) -> list[np.ndarray]:
        if image is None:
            return []
        if not isinstance(image, np.ndarray):
            try:
                image = decode(read_image(storage.file(str(image), "--image")))
            except TileError as error:
                raise ConfigError(f"--image {image}: {error}; give a JPEG, PNG or WebP") from None
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ConfigError(f"image: want [H, W, 3] uint8, found {list(image.shape)} {image.dtype}")
        return list(self.encoder.encode_image_queries([image]))

    def looks_of(self, tile: int | str) -> np.ndarray:
        """A tile as a query: the vector `[D]` that finds what looks like it.

        Raises:
            ConfigError: there is no such tile, or it has no embedding.
        """
        shard, row = self.address(tile)
        told = storage.read_row(self.place / self.table / shard, ["vector", "failure"], row)
        if told["vector"] is None:
            raise ConfigError(f"tile {tile} has no embedding ({told['failure']}); choose another")
        return self.encoder.as_queries(np.asarray([told["vector"]], np.float32))[0]

    def address(self, tile: int | str) -> tuple[str, int]:
        """Shard and row of a tile, by its id or its number.

        Raises:
            ConfigError: there is no such tile.
        """
        if isinstance(tile, str):
            return tables.find_tile(self.place, tile)
        found = self.evidence.address(int(tile))
        if found is None:
            raise ConfigError(f"{self.place} has {len(self):,} tiles, counted from 0, and so no tile {tile}")
        return found


def model_of(table: str, maker: dict[str, Any], checkpoint: str | None) -> checkpoints.Model:
    """What made a table of embeddings, or the checkpoint that is said to have.

    Raises:
        ConfigError: it is not there.
    """
    if checkpoint is not None:
        return checkpoints.resolve(checkpoint)
    made_by = maker["notes"]["checkpoint"]
    try:
        return checkpoints.resolve(made_by)
    except ConfigError:
        raise ConfigError(
            f"{table} was made by {made_by}, which is not there any more; say with --checkpoint where it lies now"
        ) from None


def combined(wanted: Sequence[np.ndarray], unwanted: Sequence[np.ndarray]) -> np.ndarray:
    """One query of several terms: their sum, less half of what is not wanted, as a unit vector `[D]`.

    What is not wanted counts by half, so that `a harbour` without `boats` is more like a harbour than unlike boats.
    """
    query = np.stack(wanted).sum(axis=0)
    if unwanted:
        query = query - np.stack(unwanted).sum(axis=0) / 2
    return np.asarray(query / max(float(np.linalg.norm(query)), 1e-12), np.float32)


def box_of(bbox: Sequence[float]) -> globe.Bounds:
    """
    Raises:
        ConfigError: these are no bounds, or those of nothing.
    """
    try:
        found = tuple(map(float, bbox))
    except (TypeError, ValueError):
        found = ()
    if len(found) != 4 or not globe.are_bounds(*found) or found[0] == found[2] or found[1] == found[3]:
        raise ConfigError(f"bbox {bbox}: want west, south, east, north in degrees, such as 24.9, 60.1, 25.0, 60.2")
    return found


def area_of(told: BaseGeometry | dict[str, Any]) -> BaseGeometry:
    """A (multi)polygon of shapely, or of GeoJSON: a geometry, a feature, or a collection of features.

    Raises:
        ConfigError: it is none, is not valid, or does not lie on the globe.
    """
    shape = told if isinstance(told, BaseGeometry) else _of_geojson(told)
    if shape.geom_type not in ("Polygon", "MultiPolygon") or shape.is_empty:
        raise ConfigError(f"area: want a polygon, found {'nothing' if shape.is_empty else shape.geom_type}")
    if not shape.is_valid:
        raise ConfigError(f"area: no valid polygon ({shapely.is_valid_reason(shape)}); mend it")
    west, south, east, north = shape.bounds
    if not (np.isfinite(shape.bounds).all() and south >= -90 and north <= 90 and west >= -360 and east <= 540):
        raise ConfigError("area: want degrees, longitude first; it does not lie on the globe")
    return globe.wrapped(shape)


def _of_geojson(told: Any) -> BaseGeometry:
    try:
        kind = told["type"]
        if kind == "FeatureCollection":
            return shapely.union_all([_of_geojson(feature) for feature in told["features"]])
        if kind == "Feature":
            return _of_geojson(told["geometry"])
        return shapely.from_geojson(json.dumps(told))
    except (TypeError, KeyError, ValueError, RecursionError, shapely.GEOSException):
        raise ConfigError("area: not GeoJSON; want a Polygon, a MultiPolygon, or features of these") from None


def embeddings_table(archive: storage.Place, variant: str | None) -> tuple[str, dict[str, Any]]:
    """Name of the embeddings table, and what made it.

    Raises:
        ConfigError: there is none, or another program made it.
    """
    table = tables.table_of(archive, "embeddings", variant, "embeddings")
    maker = storage.made_by(storage.read_schema(archive / table / storage.shards(archive / table)[0]))
    if not {"notes", "settings"} <= maker.keys():
        raise ConfigError(f"{archive / table} does not say what made it; make it with: urbancross embed")
    return table, maker
