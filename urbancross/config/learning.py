"""Verbs that learn and measure."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from urbancross.config.base import ArchiveConfig, MakerConfig, Split, WorkersConfig


class TrainingConfig(MakerConfig):
    """What pretrain and adapt have in common."""

    captions: str | None = None
    """Variant of the (source) archive's captions table, such as given or template; needed where there are several."""
    segments: str | None = None
    """Variant of the segments table; `none` leaves the segment term out; needed where there are several."""
    max_segments: PositiveInt = 4
    """Segments per tile in the segment term, best first."""
    order: Literal["quality", "caption", "area", "random"] = "quality"
    """Which segments are best: by predicted IoU, stability and area; by how well they fit the captions (`rank`); the
    largest; or any, by seed."""
    ranks: str | None = None
    """With --order caption: variant of the ranks table; needed where there are several."""
    min_score: float | None = Field(default=None, ge=-1, le=1)
    """With --order caption: leave out segments whose cosine with the captions is lower."""
    segment_weight: NonNegativeFloat = 1.0
    """Weight of the segment-text term."""

    segment_encoder: Literal["separate", "shared", "frozen"] = "separate"
    """What sees segments: a head of its own, on the image tower as it is before it learns; the head that sees tiles; or
    what the model has for them, which does not learn."""

    @model_validator(mode="after")
    def _follows_captions(self) -> Self:
        if self.order != "caption" and (self.min_score is not None or self.ranks is not None):
            raise ValueError("--min-score and --ranks mean nothing without --order caption; give it, or leave them out")
        return self

    @model_validator(mode="after")
    def _has_a_gpu_each(self) -> Self:
        if self.device == "cuda" and self.workers > 1 and self.gpus_per_worker < 1:
            raise ValueError(
                f"--workers {self.workers} with --gpus-per-worker {self.gpus_per_worker:g}: training processes do not "
                "share a GPU (NCCL refuses); give --gpus-per-worker 1, or --workers 1"
            )
        return self

    weight_decay: NonNegativeFloat = 0.05
    """AdamW's weight decay."""
    batch_tiles: PositiveInt = 64
    """Tiles per forward pass where frozen features are computed."""
    workers: PositiveInt = 2
    """Actors and training processes; the loss does not depend on their number."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where a process computes."""
    checkpoint_steps: PositiveInt = 200
    """Steps from one kept state to the next; a run that is killed goes on from the last."""
    max_failures: NonNegativeInt = 2
    """How often the team is started anew after a worker died."""
    seed: int = 0
    """Seed of the heads, the order of pairs, the choice of captions, crops and candidates."""


class PretrainConfig(TrainingConfig, ArchiveConfig):
    """Pretrain a dual encoder by contrast on tile-text and segment-text pairs of one archive."""

    out: str
    """The checkpoint folder to write."""
    model: str = "starter"
    """`starter`; an open_clip architecture with a tag, such as ViT-L-14/openai, or with a file of weights; local-dir:
    and a folder such as open_clip writes; or a checkpoint folder."""
    width: PositiveInt = 512
    """Width of the embedding (of `starter`; an open_clip model keeps its own)."""
    split: Split = "train"
    """Split of the archive to learn from."""
    train: Literal["heads", "image", "both"] = "heads"
    """heads: both towers stay frozen, their features are computed once. image: the image tower learns after that. both:
    so does the text tower, which costs as much again."""
    head_epochs: PositiveInt = 6
    """Passes over the pairs in which only the heads learn."""
    epochs: PositiveInt = 5
    """With `--train image` or `both`: further passes, in which towers learn with the heads."""
    unlocked_groups: PositiveInt | None = None
    """While towers learn: only the last so many layer groups of the image tower learn, as open_clip counts them."""
    loss: Literal["infonce", "siglip", "hinge"] = "infonce"
    """Contrast with every wrong partner of the batch together, with each alone, or by a margin (the paper's)."""
    margin: NonNegativeFloat = 0.2
    """Of --loss hinge, in cosine similarity."""
    head_batch: PositiveInt = 256
    """Pairs per step while only the heads learn, over all workers."""
    image_batch: PositiveInt = 128
    """Pairs per step while the image tower learns, over all workers."""
    captions_per_tile: PositiveInt = 5
    """Captions that each tile of a step is compared with; their features are stored, so more cost next to nothing."""
    chunk: PositiveInt | None = None
    """While towers learn: images that a tower takes at once, over one worker; the result does not depend on it, the
    memory does, and each image costs another forward pass. Default: all."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """While towers learn: what they compute in; weights and losses stay in fp32."""
    compile: bool = False
    """While towers learn: compile the image tower with torch.compile first, which pays from some hundred steps on."""
    crop_px: PositiveInt = 192
    """Side of the random crop that the image tower learns from."""
    crop_scale: float | None = Field(default=None, gt=0, le=1)
    """Least share of a tile's area that such a crop shows, drawn up to all of it and sized to --crop-px; default: crops
    keep the tile's scale."""
    head_lr: PositiveFloat = 1e-3
    """Highest learning rate of the heads (one cycle)."""
    tower_lr: PositiveFloat = 3e-4
    """Highest learning rate of the image tower (one cycle)."""
    text_lr: PositiveFloat = 5e-5
    """With `--train both`: highest learning rate of the text tower (one cycle)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the heads."""
    views: int = Field(default=1, ge=1, le=8)
    """Of how many of its eight turns and flips the embedding of a tile is the mean, wherever the checkpoint embeds, for
    a tile has no up; each costs a forward pass."""
    query_bank: NonNegativeInt | None = None
    """Tiles and captions of the split, kept in the checkpoint, that say how near a tile or a text is to everything;
    it is ranked without that. 0: none. Default: as --model has it; 1000 for starter, if there are 100; 0 otherwise."""


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
    by: Literal["land-cover"] | None = None
    """Tell recall by group of tiles too, against the whole gallery. land-cover: what most of a tile's captions name."""
    out: str | None = None
    """Where to write metrics.json; default: the run folder."""
    batch_tiles: PositiveInt = 64
    """Tiles per forward pass of one actor."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where an actor computes."""
    allow_leaks: bool = False
    """Evaluate a split although audit-splits found that it leaks."""
    bootstrap: PositiveInt = 1000
    """Resamples behind the 95 % interval, clustered by tile."""
    seed: int = 0
    """Seed of the resamples."""
