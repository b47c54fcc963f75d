"""The verb that carries a model over, and its methods by name."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from urbancross.config.base import Split
from urbancross.config.learning import TrainingConfig

Method = Literal[
    "transport",
    "urbancross",
    "source-only",
    "centre",
    "coral",
    "mmd",
    "dann",
    "cdan",
    "iwan",
    "self-training",
    "as-released",
    "few-shot",
    "joint",
    "oracle",
]

_PAPER: dict[str, Any] = {
    "pace": "linear",
    "weights": "similarity",
    "adversary_weight": 0.01,
    "target_pairs": "none",
    "margin_start": 0.5,
    "margin_end": 1.5,
}
METHODS: dict[str, dict[str, Any]] = {
    "transport": {},
    "urbancross": _PAPER,
    "source-only": {"target_pairs": "none"},
    "centre": {"target_pairs": "none", "steps": 0, "centre": True},
    "coral": {"target_pairs": "none", "gap": "coral"},
    "mmd": {"target_pairs": "none", "gap": "mmd"},
    "dann": {"target_pairs": "none", "adversary_weight": 0.01},
    "cdan": {"target_pairs": "none", "adversary_weight": 0.01, "condition": "partner"},
    "iwan": {"target_pairs": "none", "adversary_weight": 0.01, "weights": "iwan"},
    "self-training": {"target_pairs": "mutual"},
    "as-released": _PAPER | {"adversary": "as-released", "loss": "triplet", "negative": "target-tile"},
    "few-shot": {"target_pairs": "known", "setting": "few-shot"},
    "joint": {"target_pairs": "known", "setting": "oracle"},
    "oracle": {"target_pairs": "known", "setting": "oracle", "source_weight": 0.0, "segment_weight": 0.0},
}
"""What each method sets, where it is not said otherwise; for the rest the defaults below hold."""


class AdaptConfig(TrainingConfig):
    """Carry a pretrained model from the source archive to the target archive, whose pairs stay unknown.

    The towers stay frozen; the heads learn.
    """

    checkpoint: str
    """The pretrained checkpoint folder."""
    source: str
    """Archive with trusted pairs."""
    target: str
    """Archive to adapt to; its tiles and texts are used without their pairing, unless --setting says otherwise."""
    out: str
    """The checkpoint folder to write."""
    method: Method = "transport"
    """A name for a choice of the flags below; each can still be given by itself. See docs/adaptation.md."""
    setting: Literal["unsupervised", "few-shot", "oracle"] = "unsupervised"
    """unsupervised: target tiles and target texts, unpaired. few-shot: the pairs of --target-share of the target's
    tiles are known. oracle: all are."""
    target_share: float = Field(default=0.1, gt=0, le=1)
    """With --setting few-shot: share of the target's tiles whose captions are known to be theirs."""
    target_captions: str | None = None
    """Variant of the target's captions table; needed where there are several."""
    split: Split = "train"
    """Split of both archives to learn from."""
    target_tiles: PositiveInt = 1 << 17
    """Target tiles to learn from where there are more, in whole shards drawn by the seed; they lie in memory, while the
    source is read as it goes."""
    steps: NonNegativeInt = 200
    """Steps of adaptation."""
    evaluate_steps: PositiveInt = 50
    """Steps from one diagnosis on the kept-back tiles (split valid) of both archives to the next."""
    target_batch: PositiveInt = 64
    """Target tiles per step, over all workers, and as many target texts."""
    ratio: PositiveInt = 5
    """Source candidates per target tile (the paper's best: 5)."""
    head_lr: PositiveFloat = 1e-4
    """Highest learning rate of the heads (one cycle)."""
    discriminator_lr: PositiveFloat = 1e-3
    """Learning rate of the discriminators."""
    source_weight: NonNegativeFloat = 1.0
    """Weight of the loss on source pairs."""
    loss: Literal["triplet", "infonce", "siglip", "hinge"] = "infonce"
    """Loss on source pairs: weighted triplet, or one of pretraining's."""
    negative: Literal["hardest", "semi-hard", "target-tile"] = "hardest"
    """Which negative the triplet takes: cross-modal ones, or, as released, the most similar target tile."""
    margin_start: NonNegativeFloat = 0.2
    """Margin of the triplet or the hinge at the start."""
    margin_end: NonNegativeFloat = 0.5
    """Margin of the triplet or the hinge at the end."""
    pace: Literal["linear", "root", "step", "none", "anti", "random"] = "none"
    """How the share of source candidates grows from the closest to all."""
    pace_start: float = Field(default=0.3, gt=0, le=1)
    """Share of source candidates at the start."""
    weights: Literal["similarity", "iwan", "uniform", "shuffled"] = "uniform"
    """How source pairs are weighted, in the adversarial term and in --loss triplet; the other losses weigh none."""
    adversary: Literal["reversed", "as-released"] = "reversed"
    """reversed: the encoder works against the discriminators. as-released: with them, and the domains move apart."""
    adversary_weight: NonNegativeFloat = 0.0
    """Weight of the adversarial term, for tiles and for texts alike."""
    condition: Literal["none", "partner"] = "none"
    """What discriminators see beside an embedding: nothing, or the partner that the model believes it has."""
    reversal_max: NonNegativeFloat = 1.0
    """Strength of the gradient reversal at the end of its ramp."""
    gap: Literal["none", "coral", "mmd"] = "none"
    """A distance between the domains' embeddings that is made small: of their covariances, or of their kernel means."""
    gap_weight: NonNegativeFloat = 1.0
    """Weight of the gap term, for tiles and for texts alike."""
    target_pairs: Literal["none", "mutual", "transport", "known"] = "transport"
    """What takes the place of target pairs: tiles and texts that are nearest to each other; a balanced plan between all
    of them; or those that --setting says are known."""
    target_weight: NonNegativeFloat = 1.0
    """Weight of the loss on target pairs."""
    target_rounds: PositiveInt = 1
    """How often target pairs are chosen anew while the encoder learns."""
    centre: bool = False
    """At the end take the target's mean off its embeddings, of tiles and of texts each."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_method_says(cls, given: Any) -> Any:
        method = given.get("method") if isinstance(given, dict) else None
        return METHODS.get(str(method), {}) | given if method else given

    @model_validator(mode="after")
    def _knows_what_the_setting_says(self) -> Self:
        if (self.target_pairs == "known") != (self.setting != "unsupervised"):
            raise ValueError(
                f"--setting {self.setting} with --target-pairs {self.target_pairs}: known pairs need --setting "
                "few-shot or oracle, and those settings --target-pairs known"
            )
        if self.adversary_weight and self.discriminator_lr < self.head_lr:
            raise ValueError(
                f"--discriminator-lr {self.discriminator_lr:g} below --head-lr {self.head_lr:g}: the discriminators "
                "would not keep up; raise the one or lower the other"
            )
        if self.negative == "target-tile" and self.loss != "triplet":
            raise ValueError("--negative target-tile means nothing without --loss triplet; give it, or leave it out")
        return self
