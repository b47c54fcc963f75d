"""Verbs that mend, ask and show."""

import os
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import CliPositionalArg

from urbancross.config.base import ArchiveConfig, Config, Split, StageConfig, Variant, WorkersConfig


class RetryConfig(StageConfig):
    """Try the failed tiles of a table again, with what made the table; all other rows stay as they are."""

    table: str
    """The table, with its variant: tiles, captions@template, ..."""
    reason: str | None = None
    """Only tiles whose failure has this text in it."""


class VerifyConfig(ArchiveConfig, WorkersConfig):
    """Check the tables of an archive: schema, counts, ids and order, what made them, and a part made once more."""

    table: str | None = None
    """The table, with its variant; default: all."""
    sample: int = Field(default=4, ge=0)
    """Batches of every table that are made once more and compared."""
    seed: int = 0
    """Seed of the choice of batches."""


class ExplainConfig(ArchiveConfig):
    """Tell the history of one tile: where it comes from, and what became of it in every table."""

    tile_id: CliPositionalArg[str]
    """The tile."""
    json_: bool = Field(default=False, alias="json")
    """Print one JSON document instead of a table."""


class IndexConfig(ArchiveConfig):
    """Make vectors quick to search, or add new ones to what is; nothing is published that finds too little.

    Small archives are compared in full, memory-mapped. Larger ones get short codes in inverted lists: the best by these
    are compared in full. How far a search looks is chosen, and its recall measured, with captions and tiles of it.
    """

    embeddings: str | None = None
    """Variant of the embeddings table; needed where there are several."""
    checkpoint: str | None = None
    """Checkpoint that made the embeddings; default: the one their table names."""
    codes: Literal["auto", "exact", "pq", "int8", "binary"] = "auto"
    """What is kept in memory of a vector: a quarter of its directions by 4 bits each (pq), half of them by 8 (int8),
    all by one (binary), or nothing (exact). auto: exact below --exact-below, else pq."""
    exact_below: NonNegativeInt = 50_000
    """Tiles below which every vector is compared."""
    segments: bool = True
    """Take in the embeddings of segments by the same checkpoint, where there are."""
    copies: bool = True
    """Take in tiles that are copies of others, too; --no-copies leaves out what `duplicates` has found."""
    min_recall: float = Field(default=0.95, ge=0, le=1)
    """Share of the ten best tiles of exact search that the index has to find, of every kind of query."""
    queries: int = Field(default=400, ge=20)
    """Queries of each kind to measure with, captions and tiles; half of them to choose by."""
    rebuild: bool = False
    """Make it anew, also where it could be appended to."""
    seed: int = 0
    """Seed of what is sampled, for training and for measuring."""


class SearchConfig(ArchiveConfig):
    """Find the tiles of an archive that fit a text, or look like a picture or another tile."""

    text: CliPositionalArg[str | None] = None
    """What to look for, in words."""
    image: str | None = None
    """Picture to look for; with a text, the mean of both. A tile is liker to a picture than to any text, so that the
    picture says most."""
    plus: list[str] | None = None
    """A text to look for as well, said again for each."""
    minus: list[str] | None = None
    """A text that is not wanted, said again for each; counts by half."""
    like: list[str] | None = None
    """A tile to look for more of, said again for each."""
    unlike: list[str] | None = None
    """A tile to look for less of, said again for each; counts by half."""
    embeddings: str | None = None
    """Variant of the embeddings table; needed where there are several."""
    checkpoint: str | None = None
    """Checkpoint that made the embeddings; default: the one their table names."""
    segment_weight: float = Field(default=0, ge=0, le=1)
    """Share of a tile's best segment in its score; wants `embed --segments` by the same checkpoint."""
    split: Split | None = None
    """Only tiles of this split."""
    domain: str | None = None
    """Only tiles of this domain."""
    bbox: str | None = None
    """Only tiles that meet this box: west,south,east,north in degrees; west > east across the antimeridian."""
    area: str | None = None
    """Only tiles that meet the polygons of this GeoJSON file."""
    since: str | None = None
    """Only tiles of this time or later, such as 2024 or 2024-05-17."""
    until: str | None = None
    """Only tiles of this time or earlier, which is within: 2024 is its last day."""
    tag: list[str] | None = None
    """Only tiles with this geo-tag, key=value or a key for any value; said again for each, all of them wanted."""
    top: PositiveInt = 10
    """How many tiles to return."""
    exact: bool = False
    """Compare every vector, also where there is an index."""
    pictures: bool | None = None
    """Draw the tiles in colour blocks; default: on a terminal that knows 24-bit colour."""
    json_: bool = Field(default=False, alias="json")
    """Print one JSON document instead of a table."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the query is encoded."""


class ServeConfig(ArchiveConfig):
    """Search an archive in a browser, with a map: a small web application that works offline and only reads."""

    embeddings: list[str] | None = None
    """Variant of an embeddings table to search by, said again for each; default: all whose checkpoint is found."""
    checkpoint: list[str] | None = None
    """Checkpoint that made embeddings, where it lies elsewhere than their table says; said again for each."""
    host: str = "127.0.0.1"
    """Address to listen at. By any but the loopback, everybody who reaches it can read the archive."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen at; 0: any that is free."""
    hostname: list[str] | None = None
    """A name that browsers ask by, such as that of a proxy in front; said again for each. Addresses and localhost are
    known."""
    requests_per_second: NonNegativeFloat = 20
    """Searches of one address; a tile's picture counts for a tenth. 0: no limit."""
    burst: PositiveInt = 40
    """Searches of one address that may come at once."""
    max_upload_mib: float = Field(default=8, gt=0, le=64)
    """Size of a picture that is sent to search by."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where queries are encoded."""


class ReportConfig(Config):
    """Write one self-contained HTML page on an adaptation: counts, metrics, curves, domain gap, pictures.

    `--map` writes another page, that searches one archive offline, on a map: urbancross report --map --help.
    """

    source: str
    """The source archive."""
    target: str
    """The target archive."""
    before: str
    """Checkpoint before adaptation (source only)."""
    after: str
    """Checkpoint after adaptation."""
    metrics_before: str
    """metrics.json of `before` on the target."""
    metrics_after: str
    """metrics.json of `after` on the target."""
    queries: list[str] | None = None
    """A text query to show, said again for each; default: a dozen captions of the target, chosen by seed."""
    split: Split | None = None
    """Only show tiles of this split of the target; default: the split that the metrics name."""
    out: str = "report.html"
    """The page to write."""
    seed: int = 0
    """Seed of what is drawn for figures."""


class AuditConfig(StageConfig):
    """Say which splits leak: tiles with a near-copy, or a neighbour on the ground, in another split.

    Near-copies are found in any of the eight rotations and flips. `evaluate` refuses a split that leaks.
    """

    against: str | None = None
    """Another archive whose splits are compared too, such as the one that a model was trained on."""
    reach: int = Field(default=4, ge=0, le=15)
    """Bits of 63 in which the perceptual hashes of near-copies may differ."""
    embeddings: Variant | None = None
    """Variant of the embeddings table; near-copies must then be alike there as well."""
    min_cosine: float = Field(default=0.9, ge=-1, le=1)
    """With --embeddings: the least cosine of near-copies."""
    buffer_tiles: NonNegativeFloat = 1.0
    """How near a neighbour is, in widths of a tile."""
    batch_tiles: PositiveInt = 256
    """Tiles that one actor hashes at a time."""


class DuplicatesConfig(StageConfig):
    """Mark tiles that are the same picture as an earlier one, or nearly so (table `duplicates`).

    The first tile in the order of the plan is the one that stays. Tiles that show the same ground in two scenes are
    copies only where the picture is the same.
    """

    reach: int = Field(default=4, ge=0, le=15)
    """Bits of 63 in which the perceptual hashes of near-copies may differ."""
    turned: bool = True
    """Find near-copies in any of the eight rotations and flips; with --no-turned as they lie."""
    batch_tiles: PositiveInt = 256
    """Tiles that one actor hashes at a time."""


class ExportConfig(ArchiveConfig):
    """Write the segments of an archive as GeoParquet polygons, a file per reference system.

    QGIS, GeoPandas, DuckDB and GDAL open the files as they are. With --stac the archive as a STAC Collection instead;
    with --tile one tile as a GeoTIFF.
    """

    out: str
    """Folder to make, for segments-EPSG-32635.parquet and its like, or for collection.json; with --tile, a file."""
    stac: bool = False
    """Write collection.json and its items, a row a tile, in items.parquet; they point at the shards of the archive."""
    licence: str = Field(default="other", pattern=r"^[\w.+-]+$")
    """With --stac: licence of the imagery, by its SPDX name such as CC-BY-4.0."""
    tile: str | None = None
    """Write this tile alone, as a GeoTIFF that lies where it does on the ground."""
    segments: Variant | None = None
    """Variant of the segments table; needed where there are several."""
    ranks: Variant | None = None
    """Variant of a ranks table of those segments: adds how well each fits its tile's captions, and the best phrase."""
    split: Split | None = None
    """Only tiles of this split."""
    max_segments: PositiveInt | None = None
    """Only the first so many segments of a tile, by rank; default: all."""
    simplify: NonNegativeFloat = 0
    """How far outlines may stray from the pixels' edges, in pixels; 0: exact."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if self.stac and self.tile is not None:
            raise ValueError("--stac and --tile write different things; give one of them")
        of = {"segments", "ranks", "max_segments", "simplify"} if self.stac else {"licence"}
        of = of | {"segments", "ranks", "max_segments", "simplify", "split"} if self.tile is not None else of
        idle = sorted(name for name in of if getattr(self, name) != type(self).model_fields[name].default)
        if idle:
            what = "--stac" if self.stac else "--tile" if self.tile is not None else "segments; it goes with --stac"
            raise ValueError(f"--{idle[0].replace('_', '-')} means nothing to {what}; leave it out")
        return self


class GalleryConfig(ArchiveConfig):
    """Write one self-contained HTML page of tiles with their ranked segments drawn over them."""

    out: str = "gallery.html"
    """The page to write."""
    segments: Variant | None = None
    """Variant of the segments table; needed where there are several."""
    ranks: Variant | None = None
    """Variant of a ranks table of those segments: shows them in the order of their captions too."""
    captions: Variant | None = None
    """Variant of the captions table; needed where there are several."""
    tiles: PositiveInt = 24
    """Tiles to show."""
    split: Split | None = None
    """Only tiles of this split."""
    max_segments: int = Field(default=6, ge=1, le=8)
    """Segments to show of a tile, the first by rank."""
    seed: int = 0
    """Seed of the choice of tiles."""


class DoctorConfig(Config):
    """Look at packages, memory, disk, Ray, its nodes, a model, an archive; say what to type where one is amiss."""

    archive: str | None = None
    """An archive to read from and to write to, by a name that is removed again."""
    checkpoint: str = "starter"
    """A checkpoint folder or a model name that is to be used."""
    sam: str | None = None
    """Weights of SAM, by path or URL, that segment --engine sam is to use."""
    captioner: str | None = None
    """A vision-language model's folder or name that caption --engine vllm is to use."""
    json_: bool = Field(default=False, alias="json")
    """Print one JSON document instead of a table."""


class PlanConfig(ArchiveConfig):
    """Forecast hours, GPU-hours, dollars and GB of stages from some of their tiles, and say what costs most.

    Nothing is published; the balance counts the tiles that were tried. A run of the same stage says afterwards how the
    forecast came true.
    """

    stage: list[str] | None = None
    """A verb and its flags in quotes, such as "embed --checkpoint adapted --workers 4"; said again for each. Default:
    tables that are unfinished; and captions from geo-tags, segments and embeddings where the archive has none."""
    sample: PositiveInt = 384
    """Tiles to try of every stage, at least three batches for every worker."""
    minutes: PositiveFloat = 10
    """How long to try one stage; every worker makes two batches all the same."""
    tiles: PositiveInt | None = None
    """Forecast for an archive of so many tiles like these; default: those that are still to be made."""
    workers: PositiveInt | None = None
    """Forecast for so many workers, each as fast as those here; default: those that the stage will have here; on a
    cluster, which may grow, all that it asks for."""
    dollars_per_hour: NonNegativeFloat = 0
    """What the machines cost an hour, all together."""
    dollars_per_gpu_hour: NonNegativeFloat = 0
    """What a GPU costs an hour."""
    knobs: bool = True
    """Try the stage that costs most with its dearest settings lower, too."""
    seed: int = 0
    """Seed of the choice of tiles, and of the resamples behind P50 and P90."""
    json_: bool = Field(default=False, alias="json")
    """Print one JSON document instead of a table."""


class DemoConfig(Config):
    """Run the whole road from scenes to search on two countries, and write a report.

    Without --source and --target it first draws two small countries, as GeoTIFF scenes and a map.
    """

    out: str = "demo"
    """Folder for archives, checkpoints and the report."""
    source: str | None = None
    """Captioned set of the source; default: a drawn country."""
    target: str | None = None
    """Captioned set of the target; default: a drawn country."""
    query: str = "a harbour with many boats"
    """The text query that the demo answers at its end."""
    scenes: int = Field(default=6, ge=3)
    """Scenes per drawn country."""
    segments: Literal["felzenszwalb", "grid", "none"] = "felzenszwalb"
    """Segment engine, or none."""
    head_epochs: PositiveInt = 16
    """Passes over the source's pairs; a drawn country is small and wants more of them than a large set."""
    workers: PositiveInt = Field(default=os.cpu_count() or 1)
    """Actors and training processes that work at the same time."""
    seed: int = 1
    """Seed of everything."""
