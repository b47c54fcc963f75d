"""What an adaptation does to both domains, told as it runs, and when to stop it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from urbancross import gaps, metrics, verdict
from urbancross.errors import TrainingError
from urbancross.models.dual_encoder import DualEncoder
from urbancross.pairs import Pairs

COLLAPSED = 0.1  # of the variance that the embeddings began with
AT_CHANCE = 0.55  # accuracy of a discriminator that no longer tells the domains apart
LOST = 0.8  # of the recall on the source that the model began with


@dataclass(frozen=True)
class Diagnosis:
    """How a model sees kept-back tiles and texts of both domains.

    Attributes:
        source_recall, target_recall: mR by the `field` protocol. The target's needs its pairs: it is told, and decides
            nothing.
        agreement: mean of `verdict.agreement` on the target, which needs no pairs; -1 to 1.
        variance: 1 - |mean|^2 of the target's tile embeddings: 0 where all are one point, nearly 1 where they spread.
        proxy_a_distance: of the domains' tiles; 0 to 2.
        mmd2, mmd2_p: of the same; the statistic and its p-value.
    """

    source_recall: float
    target_recall: float
    agreement: float
    variance: float
    proxy_a_distance: float
    mmd2: float
    mmd2_p: float


@torch.no_grad()
def diagnose(encoder: DualEncoder, source: Pairs, target: Pairs, seed: int = 0) -> Diagnosis:
    """
    Args:
        source, target: pairs that were kept back.
        seed: of the probe's split and of the permutations.
    """
    heads = encoder.heads
    (v, u), (target_v, target_u) = (
        [heads[kind](rows.to(encoder.device)).cpu() for kind, rows in (("image", data.images), ("text", data.texts))]
        for data in (source, target)
    )
    mmd2, p = gaps.mmd2(v.numpy(), target_v.numpy(), seed=seed)
    return Diagnosis(
        source_recall=recall(v, u, source),
        target_recall=recall(target_v, target_u, target),
        agreement=float(verdict.agreement(encoder, target).mean()),
        variance=1 - float(target_v.mean(dim=0).square().sum()),
        proxy_a_distance=gaps.proxy_a_distance(v.numpy(), target_v.numpy(), seed=seed),
        mmd2=mmd2,
        mmd2_p=p,
    )


def recall(v: Tensor, u: Tensor, pairs: Pairs) -> float:
    """mR by the `field` protocol of tiles [N, D] and captions [M, D]."""
    return float(retrieval(v, u, pairs, bootstrap=1)["mR"])


@torch.no_grad()
def measure(encoder: DualEncoder, pairs: Pairs, seed: int = 0) -> dict[str, Any]:
    """What `metrics.evaluate_retrieval` tells of a model on kept-back pairs, with intervals.

    Args:
        seed: of the resamples.
    """
    v, u = (
        encoder.heads[kind](rows.to(encoder.device)).cpu()
        for kind, rows in (("image", pairs.images), ("text", pairs.texts))
    )
    return retrieval(v, u, pairs, bootstrap=1000, seed=seed)


def retrieval(v: Tensor, u: Tensor, pairs: Pairs, bootstrap: int, seed: int = 0) -> dict[str, Any]:
    """By the `field` protocol, of tiles [N, D] and captions [M, D]."""
    owner = torch.repeat_interleave(torch.arange(len(pairs)), pairs.starts.diff())
    return metrics.evaluate_retrieval(v.numpy(), u.numpy(), owner.numpy(), bootstrap=bootstrap, seed=seed)


def stop_where_it_harms(first: Diagnosis, now: Diagnosis, discriminator_accuracy: float | None) -> None:
    """
    Args:
        discriminator_accuracy: None where nothing works against the discriminators, which only watch then.

    Raises:
        TrainingError: the embeddings collapse, or the adversary has won and the source is being unlearnt.
    """
    if now.variance < COLLAPSED * first.variance:
        raise TrainingError(
            f"the embeddings collapse: their variance fell from {first.variance:.3f} to {now.variance:.3f}; "
            "lower --adversary-weight, --gap-weight or --head-lr"
        )
    if (
        discriminator_accuracy is not None
        and discriminator_accuracy < AT_CHANCE
        and now.source_recall < LOST * first.source_recall
    ):
        raise TrainingError(
            f"the adversary runs away: the discriminators are at chance ({discriminator_accuracy:.2f}) and mR on the "
            f"source fell from {first.source_recall:.3f} to {now.source_recall:.3f}; lower "
            "--adversary-weight or --reversal-max"
        )
