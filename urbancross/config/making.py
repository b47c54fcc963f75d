"""Verbs that make tables."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from urbancross.config.base import Split, StageConfig, Variant
from urbancross.hrefs import refuse_secrets


class IngestConfig(StageConfig):
    """Read a set of images or scenes into the archive's tables `tiles` and, where it has captions, `captions@given`.

    A set is a folder with captions.jsonl, the JSON of RSICD/RSITMD, the CSV of SkyScript, WebDataset tars, a folder of
    GeoTIFFs, or STAC.
    """

    source: str
    """A folder with captions.jsonl; a dataset_*.json or *.csv file; WebDataset tars: a folder of *.tar, one, or
    set-{00000..00012}.tar; a folder of GeoTIFF scenes (*.tif); a STAC Item, ItemCollection, Collection or Catalog
    (.json), or stac-geoparquet (.parquet); or the https:// URL of a STAC API."""
    domain: str
    """Name of the country or region, stored with every tile."""
    images: str | None = None
    """Folder that image paths start from; default: where the captions file lies (or `images` beside it)."""
    asset: str | None = None
    """STAC only: the asset to read, or those of red, green and blue such as B04,B03,B02; default: the one GeoTIFF."""
    collections: str | None = None
    """STAC only: ids of collections, with commas between them; default: any."""
    bbox: str | None = None
    """STAC only: west,south,east,north in degrees that items have to meet."""
    datetime: str | None = None
    """STAC only: when items were taken, such as 2024, 2024-06/2024-08 or 2024-06-01/.. with no end."""
    query: list[str] | None = None
    """STAC APIs only: what a property has to be, such as "eo:cloud_cover<10"; again for another."""
    filter: str | None = None
    """STAC APIs only: CQL2, as text or JSON, such as "eo:cloud_cover < 10 AND platform = 'sentinel-2a'"."""
    max_items: PositiveInt | None = None
    """STAC only: items at most; default: all."""
    sign_url: str | None = None
    """Scenes behind https:// only: where URLs are signed when they are read, such as https://host/sign?href={href}."""
    retry_seconds: NonNegativeFloat = 120
    """Remote scenes only: how long in all the requests of one tile are tried again; then it fails, until `retry`."""
    tile_px: PositiveInt = 224
    """Scenes only: side of a tile in pixels."""
    grid: Literal["pixels", "metres", "xyz", "globe"] = "pixels"
    """Scenes only: squares of its own pixels; of --gsd metres a pixel in its reference system; of a web map at --zoom;
    or of --gsd around points that lie evenly on the globe, each in its UTM zone, as Major TOM has them."""
    gsd: float | None = Field(default=None, gt=0)
    """With --grid metres or globe: metres of a pixel; read from the overview that fits."""
    zoom: int | None = Field(default=None, ge=0, le=24)
    """With --grid xyz: zoom of the web map."""
    overlap: float = Field(default=0, ge=0, lt=0.95)
    """Scenes only: share of a side that neighbours have in common; with --grid xyz, that a tile grows by."""
    bands: str | None = None
    """Scenes only: bands of red, green and blue such as 4,3,2, or one; default: as a scene says, or its first three."""
    stretch: str | None = None
    """Scenes only: values that become black and white, such as 0..3000, or percentiles of a scene, such as 2%..98%;
    default: none for 8 bits, 2%..98% for others, where scenes are not to be compared by colour."""
    resampling: Literal["nearest", "bilinear", "cubic", "average"] = "bilinear"
    """Scenes only: how pixels that do not lie as the scene's do are made of those."""
    min_valid: float = Field(default=0.5, ge=0, le=1)
    """Scenes only: skip tiles with data on a smaller share; squares that a scene covers less are not planned.
    With --grid pixels only whole squares are."""
    max_cloud: float | None = Field(default=None, ge=0, le=1)
    """Scenes only: skip tiles of which a larger share is white and without colour."""
    split: Split | None = None
    """Split of all tiles for which the source names none; default: by the shares below."""
    split_by: Literal["file", "place", "look"] = "file"
    """What stays in one split. file: the tiles of a scene; an image by itself. place: blocks on the ground, and tiles
    that lie within a tile of another split are left out. look: near-copies in any turn and flip (reads every image)."""
    block_m: PositiveFloat = 5000.0
    """With --split-by place: side of a block in metres; many times a tile's, or most tiles lie between two splits."""
    valid_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of what --split-by keeps together that forms the split `valid`, where the source names no split."""
    test_share: float = Field(default=0.25, ge=0, lt=1)
    """Likewise of the split `test`."""
    shard_tiles: PositiveInt = 2048
    """Tiles per shard; the unit of work, of commit and of resuming."""
    seed: int = 0
    """Seed of the assignment to splits."""

    @model_validator(mode="after")
    def _keeps_no_secret(self) -> Self:
        for flag, url in (("--source", self.source), ("--sign-url", self.sign_url or "")):
            if "://" in url:
                refuse_secrets(url, flag)
        if self.sign_url and not (self.sign_url.startswith(("http://", "https://")) and "{href}" in self.sign_url):
            raise ValueError("--sign-url: want an http(s) URL with {href} where the URL to sign goes")
        return self


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
    """Cut every tile into segments, ranked without its caption (table `segments@NAME`)."""

    engine: Literal["felzenszwalb", "sam", "grid"] = "felzenszwalb"
    """felzenszwalb: graph-based segmentation, needs no weights. sam: segment-anything. grid: quarters, a baseline."""
    name: Variant | None = None
    """Variant of the segments table; default: the engine's name, such as felzenszwalb or sam-vit_h."""
    max_segments: PositiveInt = 32
    """Segments kept per tile, best first; what is learnt from or embedded later are the first few of them."""
    min_area: float = Field(default=0.01, ge=0, le=1)
    """Smallest segment, as a share of the tile."""
    max_area: float = Field(default=0.6, ge=0, le=1)
    """Largest segment, as a share of the tile."""
    batch_tiles: PositiveInt = 16
    """Tiles that an actor reads, decodes and reports together."""
    checkpoint: str | None = None
    """sam: weights of a vit_b, vit_l or vit_h, or of a model of their kind: a .pth or .safetensors, or its URL."""
    sha256: str | None = None
    """sam: digest that the weights must have, or its first digits; official names of weights end with theirs."""
    mode: Literal["exact", "fast"] = "exact"
    """sam: exact gives the masks of segment-anything's own generator; fast sets the three flags below lower."""
    points_per_side: PositiveInt | None = None
    """sam: the tile is asked about at so many points squared; default: 32, or 16 with --mode fast."""
    input_px: PositiveInt | None = None
    """sam: longest side of the encoder's input; default: the model's own, or half of it with --mode fast."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """sam: default: fp32; with --mode fast bf16 where the device computes in it."""
    pred_iou_thresh: float = Field(default=0.88, ge=0, le=1)
    """sam: lowest IoU that the model predicts of a mask that is kept."""
    stability_score_thresh: float = Field(default=0.95, ge=0, le=1)
    """sam: lowest stability of a mask that is kept."""
    box_nms_thresh: float = Field(default=0.7, ge=0, le=1)
    """sam: of two masks whose boxes overlap by more than this IoU, the one of the lower predicted IoU goes."""
    points_per_batch: PositiveInt = 64
    """sam: points that the mask decoder takes at once on a GPU; on CPUs it takes what fits the caches."""
    encoder_batch: PositiveInt = 1
    """sam: tiles that the image encoder takes at once; 4 to 16 fill a GPU."""
    compile: bool = False
    """sam: compile the image encoder with torch.compile first, which pays on GPUs from some thousand tiles on."""
    device: Literal["cpu", "cuda"] = "cpu"
    """sam: where an actor computes."""

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if (self.engine == "sam") != bool(self.checkpoint):
            raise ValueError("--engine sam and --checkpoint WEIGHTS go together")
        of_sam = {
            name: told for name, told in type(self).model_fields.items() if (told.description or "").startswith("sam:")
        }
        idle = [name for name, told in of_sam.items() if getattr(self, name) != told.default]
        if self.engine != "sam" and idle:
            raise ValueError(f"--{idle[0].replace('_', '-')} means nothing to --engine {self.engine}; leave it out")
        if self.checkpoint and "://" in self.checkpoint and ("@" in self.checkpoint or "?" in self.checkpoint):
            raise ValueError(
                "--checkpoint: a URL with a password or a signature would be kept; download the file first"
            )
        return self


class RankConfig(StageConfig):
    """Score how well every segment fits its tile's captions (table `ranks@NAME`), for `pretrain --order caption`."""

    checkpoint: str
    """The encoder: a checkpoint folder, or an open_clip name with tag such as ViT-L-14/openai."""
    segments: str | None = None
    """Variant of the segments table; needed where there are several."""
    captions: str | None = None
    """Variant of the captions table; needed where there are several."""
    name: Variant | None = None
    """Variant of the ranks table; default: SEGMENTS-CAPTIONS-CHECKPOINT."""
    batch_tiles: PositiveInt = 16
    """Tiles whose segments an actor encodes together."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where an actor computes."""


class EmbedConfig(StageConfig):
    """Turn every tile, or every segment, into a unit vector (table `embeddings@NAME` or `segment_embeddings@NAME`)."""

    checkpoint: str
    """A checkpoint folder, or a model name: `starter`, or an open_clip name with tag such as ViT-B-32/openai."""
    name: Variant | None = None
    """Variant of the embeddings table; default: the checkpoint's own name."""
    segments: str | None = None
    """Embed the segments of this table, such as felzenszwalb, and not the tiles; they tell search where in a tile."""
    max_segments: PositiveInt = 10
    """With --segments: how many a tile, by the order that needs no caption."""
    batch_tiles: PositiveInt = 64
    """Tiles per forward pass of one actor."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where an actor computes."""
