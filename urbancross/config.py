"""One settings model per verb. A default lives here and nowhere else."""

import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

Split = Literal["train", "valid", "test"]
Variant = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # names a folder


class Config(BaseSettings):
    model_config = SettingsConfigDict(
        use_attribute_docstrings=True,
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # flags only: no setting comes from an environment variable unseen


class ArchiveConfig(Config):
    archive: str
    """The archive: a folder or an s3://bucket/prefix that holds tables."""


class WorkersConfig(Config):
    """What every verb has that works on actors."""

    workers: PositiveInt = Field(default=os.cpu_count() or 1)
    """Actors that work at the same time."""
    cpus_per_worker: PositiveFloat = 1
    """CPUs that one actor asks of Ray."""
    gpus_per_worker: NonNegativeFloat = 0
    """GPUs, or a share of one, that one actor asks of Ray."""
    stall_minutes: float = Field(default=30, gt=0, le=100_000)
    """End a worker that makes no step for so long; its tiles are tried again, and left out if it is them."""


class MakerConfig(WorkersConfig):
    """What every verb has that makes a table on the way."""

    max_failed: str | None = None
    """Stop when more tiles fail, such as 5% or 100; default: go on."""

    @field_validator("max_failed")
    @classmethod
    def _is_budget(cls, told: str | None) -> str | None:
        if told is not None and not re.fullmatch(r"\d+(\.\d+)?%|\d+", told):
            raise ValueError("want a share such as 5% or a count such as 100")
        return told


class StageConfig(ArchiveConfig, MakerConfig):
    """What every verb has that makes a table."""


class IngestConfig(StageConfig):
    """Read a set of images or scenes into the archive's tables `tiles` and, where it has captions, `captions@given`.

    A set is a folder with captions.jsonl, the JSON of RSICD/RSITMD, the CSV of SkyScript, or a folder of GeoTIFFs.
    """

    source: str
    """A folder with captions.jsonl; a dataset_*.json or *.csv file; or a folder of GeoTIFF scenes (*.tif)."""
    domain: str
    """Name of the country or region, stored with every tile."""
    images: str | None = None
    """Folder that image paths start from; default: where the captions file lies (or `images` beside it)."""
    tile_px: PositiveInt = 224
    """Scenes only: side of a tile in pixels."""
    split: Split | None = None
    """Split of all tiles for which the source names none; default: by the shares below."""
    valid_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of scenes, or of images without a split of their own, that form the split `valid`."""
    test_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of scenes, or of images without a split of their own, that form the split `test`."""
    shard_tiles: PositiveInt = 2048
    """Tiles per shard; the unit of work, of commit and of resuming."""
    seed: int = 0
    """Seed of the assignment to splits."""


class GeotagConfig(StageConfig):
    """Give every tile the geo-tags of the map features that lie on it (table `geotags`)."""

    osm: str | None = None
    """OpenStreetMap extract: .osm, .osm.gz or .osm.pbf; or else --features."""
    features: str | None = None
    """Map features: GeoParquet (Overture's too), GeoJSON or GeoJSON lines, in any reference system."""
    licence: str | None = None
    """The map's licence line, kept with the tags; default: OpenStreetMap's for --osm, `unknown` for --features."""
    nearby: NonNegativeFloat = 2.0
    """How far outside a tile with few tags to look for more, in sides of the tile."""
    max_tags: PositiveInt = 12
    """Tags per tile, the largest visible area first."""


class CaptionConfig(StageConfig):
    """Write captions for every tile (table `captions@NAME`)."""

    engine: Literal["template", "vllm", "openai"] = "template"
    """template: from geo-tags alone. vllm: a vision-language model in the workers. openai: one behind --endpoint."""
    model: str | None = None
    """The vision-language model: a name that vLLM or the endpoint knows, or a folder."""
    name: Variant | None = None
    """Variant of the captions table; default: the model's own name, or template."""
    captions_per_tile: PositiveInt | None = None
    """Captions per tile; default: 5 from templates (fewer where the tags do not allow so many), 1 from a model."""
    seed: int = 0
    """Seed of the choice of words and tags, and of a model's sampling."""
    tags: bool = True
    """Tell the engine the tile's geo-tags; with --no-tags a model sees the image alone."""
    max_tags: PositiveInt = 12
    """Tags told per tile."""
    min_tags: PositiveInt = 1
    """A tile with fewer tags counts as sparsely mapped."""
    sparse: Literal["image", "nearby"] = "image"
    """What a sparsely mapped tile is described from: its image alone, or also the tags nearby."""
    tag_drop_rate: float = Field(default=0, ge=0, le=1)
    """Experiments: leave out each tag with this probability."""
    shuffle_tags: bool = False
    """Experiments: tell every tile the tags of another one."""
    on_contradiction: Literal["regenerate", "drop", "keep"] = "regenerate"
    """What becomes of a model's captions that contradict the map; regenerate ends with one from the image alone."""
    attempts: PositiveInt = 3
    """Questions per caption until an answer can be read and does not contradict the map; one more goes without tags."""
    fallback: bool = True
    """Where no answer can be read: a template's captions from the tags."""
    temperature: NonNegativeFloat = 0.7
    """How freely a model samples; 0: always the likeliest word."""
    max_tokens: PositiveInt = 512
    """Tokens per answer."""
    max_chars: int = Field(default=400, ge=40, le=1000)
    """Characters per description."""
    batch_tiles: PositiveInt = 512
    """Tiles per call of the engine; several times its --max-num-seqs keeps it full."""
    tensor_parallel: PositiveInt = 1
    """vllm: GPUs over which one engine is spread: those of one node; or of a placement group over several nodes, with
    {"distributed_executor_backend": "ray"} in --engine-args and --gpus-per-worker 0."""
    max_model_len: PositiveInt | None = None
    """vllm: longest prompt and answer in tokens; default: the model's own."""
    max_num_seqs: PositiveInt | None = None
    """vllm: prompts that an engine works on at once; default: vLLM's own."""
    revision: str | None = None
    """vllm: commit of the model on its hub."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """vllm: further arguments of vllm.LLM, as JSON, such as {"quantization": "fp8"}."""
    endpoint: str | None = None
    """openai: base URL of the server, such as http://127.0.0.1:8000/v1; its key comes from OPENAI_API_KEY."""
    concurrency: PositiveInt = 32
    """openai: questions on their way at once, per worker."""
    timeout_s: PositiveFloat = 120
    """openai: longest wait for one answer."""
    retry_minutes: NonNegativeFloat = 10
    """openai: how long one question is tried again while the server is busy or away; then the stage stops."""

    @model_validator(mode="after")
    def _fits_engine(self) -> Self:
        if self.shuffle_tags and not self.tags:
            raise ValueError("--shuffle-tags wants tags; leave --no-tags out")
        if self.engine != "template" and not self.model:
            raise ValueError(f"--engine {self.engine} wants --model")
        if self.engine == "openai" and not self.endpoint:
            raise ValueError("--engine openai wants --endpoint, such as http://127.0.0.1:8000/v1")
        if self.endpoint and ("@" in self.endpoint or not self.endpoint.startswith(("http://", "https://"))):
            raise ValueError("--endpoint wants an http(s) URL without a password; keys come from OPENAI_API_KEY")
        return self


class SegmentConfig(StageConfig):
    """Cut every tile into segments, ranked without its caption (table `segments@ENGINE`)."""

    engine: Literal["felzenszwalb", "grid"] = "felzenszwalb"
    """felzenszwalb: graph-based segmentation, needs no weights. grid: the four quarters, a baseline."""
    max_segments: PositiveInt = 10
    """Segments kept per tile, best first."""
    min_area: float = Field(default=0.01, ge=0, le=1)
    """Smallest segment, as a share of the tile."""
    max_area: float = Field(default=0.6, ge=0, le=1)
    """Largest segment, as a share of the tile."""


class EmbedConfig(StageConfig):
    """Turn every tile into a unit vector (table `embeddings@NAME`)."""

    checkpoint: str
    """A checkpoint folder, or a model name: `starter`, or an open_clip name with tag such as ViT-B-32/openai."""
    name: Variant | None = None
    """Variant of the embeddings table; default: the checkpoint's own name."""
    batch_tiles: PositiveInt = 64
    """Tiles per forward pass of one actor."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where an actor computes."""


class TrainingConfig(MakerConfig):
    """What pretrain and adapt have in common."""

    captions: str | None = None
    """Variant of the (source) archive's captions table, such as given or template; needed where there are several."""
    segments: str | None = None
    """Variant of the segments table; `none` leaves the segment term out; needed where there are several."""
    max_segments: PositiveInt = 4
    """Segments per tile in the segment term, best first."""
    segment_weight: NonNegativeFloat = 1.0
    """Weight of the segment-text term."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's weight decay."""
    batch_tiles: PositiveInt = 64
    """Tiles per forward pass where frozen features are computed."""
    workers: PositiveInt = 2
    """Actors and training processes; the loss does not depend on their number."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where a process computes."""
    seed: int = 0
    """Seed of the heads, the order of pairs, the choice of captions, crops and candidates."""


class PretrainConfig(TrainingConfig, ArchiveConfig):
    """Pretrain a dual encoder by contrast on tile-text and segment-text pairs of one archive."""

    out: str
    """The checkpoint folder to write."""
    model: str = "starter"
    """`starter`, an open_clip name with tag such as ViT-L-14/openai, or a checkpoint folder."""
    width: PositiveInt = 512
    """Width of the embedding (of `starter`; an open_clip model keeps its own)."""
    split: Split = "train"
    """Split of the archive to learn from."""
    train: Literal["heads", "image"] = "heads"
    """heads: both towers stay frozen, their features are computed once. image: the image tower learns after that."""
    head_epochs: PositiveInt = 6
    """Passes over the pairs in which only the heads learn."""
    epochs: PositiveInt = 5
    """With `--train image`: further passes, in which the image tower learns with the heads."""
    unlocked_groups: PositiveInt | None = None
    """With `--train image`: only the last so many layer groups of the image tower learn, as open_clip counts them."""
    head_batch: PositiveInt = 256
    """Pairs per step while only the heads learn, over all workers."""
    image_batch: PositiveInt = 128
    """Pairs per step while the image tower learns, over all workers."""
    captions_per_tile: PositiveInt = 5
    """Captions that each tile of a step is compared with; their features are stored, so more cost next to nothing."""
    crop_px: PositiveInt = 192
    """Side of the random crop that the image tower learns from."""
    head_lr: PositiveFloat = 1e-3
    """Highest learning rate of the heads (one cycle)."""
    tower_lr: PositiveFloat = 3e-4
    """Highest learning rate of the image tower (one cycle)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the heads."""


class AdaptConfig(TrainingConfig):
    """Carry a pretrained model from the source archive to the target archive, whose pairs stay unknown.

    The towers stay frozen; the heads learn.
    """

    checkpoint: str
    """The pretrained checkpoint folder."""
    source: str
    """Archive with trusted pairs."""
    target: str
    """Archive to adapt to; its tiles and texts are used without their pairing."""
    out: str
    """The checkpoint folder to write."""
    setting: Literal["unsupervised"] = "unsupervised"
    """unsupervised: target tiles and target texts, unpaired."""
    target_captions: str | None = None
    """Variant of the target's captions table; needed where there are several."""
    split: Split = "train"
    """Split of both archives to learn from."""
    steps: PositiveInt = 200
    """Steps of adaptation."""
    target_batch: PositiveInt = 64
    """Target tiles per step, over all workers, and as many target texts."""
    ratio: PositiveInt = 5
    """Source candidates per target tile (the paper's best: 5)."""
    head_lr: PositiveFloat = 1e-4
    """Highest learning rate of the heads (one cycle)."""
    discriminator_lr: PositiveFloat = 1e-3
    """Learning rate of the discriminators."""
    loss: Literal["triplet", "contrastive"] = "contrastive"
    """Loss on source pairs: weighted triplet, or the contrastive loss of pretraining."""
    negative: Literal["hardest", "semi-hard"] = "hardest"
    """Which cross-modal negative the triplet takes."""
    margin_start: NonNegativeFloat = 0.2
    """Margin of the triplet at the start."""
    margin_end: NonNegativeFloat = 0.5
    """Margin of the triplet at the end."""
    pace: Literal["linear", "root", "step", "none", "anti", "random"] = "linear"
    """How the share of source candidates grows from the closest to all."""
    pace_start: float = Field(default=0.3, gt=0, le=1)
    """Share of source candidates at the start."""
    weights: Literal["similarity", "iwan", "uniform", "shuffled"] = "similarity"
    """How source pairs are weighted."""
    adversary_weight: NonNegativeFloat = 0.01
    """Weight of the adversarial term, for tiles and for texts alike."""
    reversal_max: NonNegativeFloat = 1.0
    """Strength of the gradient reversal at the end of its ramp."""


class EvaluateConfig(ArchiveConfig, WorkersConfig):
    """Retrieval recall of a checkpoint on one split of an archive, by a named protocol."""

    checkpoint: str
    """A checkpoint folder or a model name."""
    protocol: Literal["field", "unique-text"] = "field"
    """field: a caption line's own tile alone is relevant. unique-text: every tile with that text is."""
    split: Split = "test"
    """Split whose tiles and captions form the gallery and the queries."""
    captions: str | None = None
    """Variant of the captions table; needed where there are several."""
    out: str | None = None
    """Where to write metrics.json; default: the run folder."""
    batch_tiles: PositiveInt = 64
    """Tiles per forward pass of one actor."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where an actor computes."""
    bootstrap: PositiveInt = 1000
    """Resamples behind the 95 % interval, clustered by tile."""
    seed: int = 0
    """Seed of the resamples."""


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


class SearchConfig(ArchiveConfig):
    """Find the tiles of an archive that fit a text, or look like a picture."""

    text: CliPositionalArg[str | None] = None
    """What to look for, in words."""
    image: str | None = None
    """Picture to look for; with a text, both count alike."""
    embeddings: str | None = None
    """Variant of the embeddings table; needed where there are several."""
    checkpoint: str | None = None
    """Checkpoint that made the embeddings; default: the one their table names."""
    split: Split | None = None
    """Only tiles of this split."""
    bbox: str | None = None
    """Only tiles that meet this box: west,south,east,north in degrees; west > east across the antimeridian."""
    top: PositiveInt = 10
    """How many tiles to return."""
    json_: bool = Field(default=False, alias="json")
    """Print one JSON document instead of a table."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the query is encoded."""


class ReportConfig(Config):
    """Write one self-contained HTML page on an adaptation: counts, metrics, curves, domain gap, pictures."""

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
