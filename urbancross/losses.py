"""What training minimises: contrastive, adversarial and triplet terms; tensors in, a scalar out.

B = tiles in a batch, C = captions per tile, K = segment slots per tile, D = embedding width. Rows C * i to C * (i + 1)
of `text` are the captions of row i of `image`, and every embedding is a unit vector. All is written for one device:
what several workers hold has to be gathered, with its gradient, before it comes here.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from urbancross.errors import ConfigError

Contrast = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Tiles [B, D], captions [B * C, D] and which belong together [B, B * C] to a scalar."""

Kind = Literal["infonce", "siglip", "hinge"]
Negative = Literal["hardest", "semi-hard"]

SHORTEST = 1e-6
"""A mean of unit vectors shorter than this points nowhere. float16 can still hold it, unlike torch's own 1e-12."""


def positives(tile_keys: Tensor, text_keys: Tensor) -> Tensor:
    """Say which tile and caption of a batch belong together: those of one tile, and those of one wording.

    Captions repeat a lot in real tables; a repeated one must not be pushed away from the tile it also describes.

    Args:
        tile_keys: [B] int, equal for equal tiles.
        text_keys: [B, C] int, of the C captions of each tile, equal for captions of the same wording.

    Returns:
        [B, B * C] bool, rows tiles, columns captions, tile by tile; true where a tile meets its own captions.
    """
    columns = text_keys.flatten()
    belong = tile_keys[:, None] == tile_keys.repeat_interleave(text_keys.shape[1])
    for nth in text_keys.T:  # a caption of each tile: [B, C, B * C] at once would be large
        belong |= nth[:, None] == columns
    return belong


def contrast(kind: Kind, scale: Tensor | float, bias: Tensor | float, margin: float) -> Contrast:
    """One of `infonce`, `siglip` and `hinge` by name, with what each of them needs."""
    known: dict[str, Contrast] = {
        "infonce": partial(infonce, scale=scale),
        "siglip": partial(siglip, scale=scale, bias=bias),
        "hinge": partial(hinge, margin=margin),
    }
    return known[kind]


def infonce(image: Tensor, text: Tensor, positive: Tensor, scale: Tensor | float) -> Tensor:
    """InfoNCE with several positives per row, tile to text and text to tile, averaged.

    A row's term is the mean over its positives of -log softmax(scale * similarity), the form with the mean outside the
    logarithm (SupCon, arXiv 2004.11362, eq. 2). A row without a positive leaves the mean, its direction only.

    Args:
        image: [B, D] unit vectors.
        text: [B * C, D] unit vectors.
        positive: [B, B * C] bool, rows tiles, columns captions.
        scale: inverse temperature, a number or a learned scalar.

    Returns:
        Scalar; zero, with its graph, where no row has a positive.
    """
    logits = scale * image @ text.T  # [B, B * C]
    return (_one_way_infonce(logits, positive) + _one_way_infonce(logits.T, positive.T)) / 2


def _one_way_infonce(logits: Tensor, positive: Tensor) -> Tensor:
    surprise = -F.log_softmax(logits, dim=1)
    count = positive.sum(dim=1)  # [B]
    row = torch.where(positive, surprise, 0).sum(dim=1) / count.clamp(min=1)  # 0 where a row has no positive
    return row.sum() / (count > 0).sum().clamp(min=1)


def siglip(image: Tensor, text: Tensor, positive: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """Every tile and caption judged by itself: do they belong together? (SigLIP, arXiv 2303.15343, eq. 1.)

    The sum over all pairs is divided by the captions, so that it is SigLIP's where each tile has one, and does not grow
    with their number.

    Args:
        image: [B, D] unit vectors.
        text: [B * C, D] unit vectors.
        positive: [B, B * C] bool, rows tiles, columns captions.
        scale: inverse temperature.
        bias: of the logits; learned from `first_bias` on.
    """
    logits = scale * image @ text.T + bias
    return F.softplus(torch.where(positive, -logits, logits)).sum() / max(len(text), 1)


def first_bias(batch: int) -> float:
    """Where the bias of `siglip` starts: the log odds that a tile and a caption of such a batch belong together."""
    return -math.log(max(batch - 1, 1))


def hinge(image: Tensor, text: Tensor, positive: Tensor, margin: float) -> Tensor:
    """By how much wrong partners come within the margin of a pair, over all of them (VSE, arXiv 1411.2539).

    Mean over pairs and their wrong partners, [margin + cos(wrong) - cos(right)]+, captions for tiles and tiles for
    captions, averaged. UrbanCross sums, which grows with the square of the batch.

    Args:
        image: [B, D] unit vectors.
        text: [B * C, D] unit vectors, tile by tile.
        positive: [B, B * C] bool, rows tiles, columns captions; positives beside the own pair are no negatives.
        margin: of cosine similarity.

    Returns:
        Scalar; zero, with its graph, where nothing is negative.
    """
    similarity, negative = image @ text.T, ~positive  # [B, B * C]
    captions = len(text) // max(len(image), 1)
    own = similarity.unflatten(1, (len(image), captions)).diagonal().T if captions else similarity  # [B, C]
    count = negative.sum().clamp(min=1)
    for_captions = torch.where(negative, F.relu(margin + similarity - own.flatten()), 0).sum() / count
    hinges = (torch.where(negative, F.relu(margin + similarity - nth[:, None]), 0).sum() for nth in own.T)
    return (for_captions + sum(hinges, similarity.new_zeros(())) / (count * max(captions, 1))) / 2


def segment_contrast(loss: Contrast, pooled: Tensor, has_segment: Tensor, text: Tensor, positive: Tensor) -> Tensor:
    """A loss between the pooled segments of a tile and its captions.

    A tile without segments leaves as a row and as a column: nothing is known about it, so it is no negative either.

    Args:
        loss: see `contrast`.
        pooled: [B, D] unit vectors from `pool_segments`.
        has_segment: [B] bool.
        text: [B * C, D] unit vectors.
        positive: [B, B * C] bool, rows tiles, columns captions.

    Returns:
        Scalar; zero, with its graph, where no tile has a segment.
    """
    column = has_segment.repeat_interleave(len(text) // max(len(has_segment), 1))
    return loss(pooled[has_segment], text[column], positive[has_segment][:, column])


def pool_segments(segments: Tensor, present: Tensor) -> Tensor:
    """Average the segments each tile really has, and scale the mean to unit length.

    Args:
        segments: [B, K, D] unit vectors; absent slots may hold anything, NaN too.
        present: [B, K] bool, true where a segment exists.

    Returns:
        [B, D]; zeros for a tile without segments.
    """
    kept = torch.where(present[..., None], segments, 0)  # a product with the mask would let NaN through
    mean = kept.sum(dim=1) / present.sum(dim=1, keepdim=True).clamp(min=1)
    return F.normalize(mean, dim=-1, eps=SHORTEST)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Pass `x` on unchanged; on the way back multiply its gradient by -strength (DANN, arXiv 1409.7495).

    What stands before it then climbs the loss that what stands after it descends. Without it the encoder would help
    the discriminator, which drives the domains apart; a negative strength does just that, for comparison.

    Args:
        x: any shape.
        strength: 0 cuts the encoder off; see `curriculum.reversal_strength`.
    """
    reversed_: Tensor = _ReverseGradient.apply(x, strength)
    return reversed_


def adversarial(source_logits: Tensor, target_logits: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of a discriminator that has to call source 1 and target 0, source pairs weighted.

    sum_j w_j softplus(-D(f_j)) / sum_j w_j  +  mean_i softplus(D(f_i)), on logits: the log of a saturated sigmoid is
    minus infinity in half precision. The features go through `reverse_gradient` before the discriminator.

    Args:
        source_logits: [n], one per source pair.
        target_logits: [m], one per target tile or text.
        weights: [n], not negative, without gradient; see `curriculum.source_weights`.

    Returns:
        Scalar.
    """
    if source_logits.shape != weights.shape:  # [n, 1] and [n] would broadcast to [n, n] without a word
        raise ConfigError(f"source logits {[*source_logits.shape]} and weights {[*weights.shape]} differ in shape")
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    source = (weights * F.softplus(-source_logits)).sum() / total
    return source + F.softplus(target_logits).sum() / max(target_logits.numel(), 1)


def weighted_triplet(
    image: Tensor, text: Tensor, positive: Tensor, margin: float, weights: Tensor, negative: Negative = "hardest"
) -> Tensor:
    """Hinge on the margin between a pair and its best wrong partner, both directions, one weight per pair.

    sum_i w_i ([m + d_ii - min_j d_ij]+ + [m + d_ii - min_j d_ji]+) / (2 sum_i w_i), with d = 1 - cos (VSE++,
    arXiv 1707.05612, with weights). Negatives are cross-modal and from the same batch: a target image as the negative
    of a source pair would train the domains apart.

    Args:
        image: [B, D].
        text: [B, D].
        positive: [B, B] bool, rows tiles, columns captions; positives beside the own pair are no negatives.
        margin: of cosine distance.
        weights: [B], not negative, without gradient.
        negative: `hardest`, the nearest negative; `semi-hard`, the nearest of those farther than the own partner, and
            the hardest where there is none.

    Returns:
        Scalar; a row without any negative adds 0.
    """
    if weights.shape != image.shape[:1]:
        raise ConfigError(f"{len(image)} pairs and weights {[*weights.shape]}: one weight per pair wanted")
    if negative not in ("hardest", "semi-hard"):
        raise ConfigError(f"unknown negative {negative!r}; wanted hardest or semi-hard")
    distance = 1 - F.normalize(image, dim=-1, eps=SHORTEST) @ F.normalize(text, dim=-1, eps=SHORTEST).T  # [B, B]
    allowed = ~positive & ~torch.eye(len(image), dtype=torch.bool, device=image.device)
    hinges = _one_way_hinge(distance, allowed, margin, negative) + _one_way_hinge(
        distance.T, allowed.T, margin, negative
    )
    return (weights * hinges).sum() / (2 * weights.sum().clamp(min=torch.finfo(weights.dtype).tiny))


def released_triplet(image: Tensor, text: Tensor, target_image: Tensor, margin: float, weights: Tensor) -> Tensor:
    """The triplet of UrbanCross's released code, for comparison: its negative is the most similar target tile.

    sum_i w_i [m + d(v_i, u_i) - min_j d(v_i, t_j)]+ / sum_i w_i. What it descends pushes the two domains apart.

    Args:
        image: [B, D] source tiles.
        text: [B, D] their captions.
        target_image: [T, D].
        weights: [B], not negative, without gradient.
    """
    nearest = (1 - image @ target_image.T).amin(dim=1)
    hinges = F.relu(margin + 1 - (image * text).sum(dim=1) - nearest)
    return (weights * hinges).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Distance of two covariances, ||C_s - C_t||^2 / (4 D^2) (Deep CORAL, arXiv 1607.01719, eq. 1), of unit variance.

    Unit vectors are scaled by the root of D first, as everywhere where their spread matters: without it the term is
    smaller by D^2 and does nothing.

    Args:
        source: [n, D] unit vectors.
        target: [m, D] likewise.
    """
    width = source.shape[1]
    apart = torch.cov(source.T * width**0.5) - torch.cov(target.T * width**0.5)
    return apart.square().sum() / (4 * width**2)


def mmd(source: Tensor, target: Tensor, widths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)) -> Tensor:
    """Squared maximum mean discrepancy with a sum of Gaussian kernels (DAN, arXiv 1502.02791), biased, never negative.

    Args:
        source: [n, D].
        target: [m, D].
        widths: of the kernels, in units of the mean squared distance between rows, which passes no gradient.
    """
    rows = torch.cat([source, target])
    distance2 = torch.cdist(rows, rows).square()
    kernel = sum(
        (torch.exp(-distance2 / (width * distance2.mean().detach().clamp(min=SHORTEST))) for width in widths),
        rows.new_zeros(()),
    )
    n = len(source)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def _one_way_hinge(distance: Tensor, allowed: Tensor, margin: float, negative: Negative) -> Tensor:
    own = distance.diagonal()
    if negative == "semi-hard":
        farther = allowed & (distance > own[:, None])
        allowed = torch.where(farther.any(dim=1, keepdim=True), farther, allowed)
    nearest = distance.masked_fill(~allowed, torch.inf).amin(dim=1)  # inf, so a hinge of 0, where none is allowed
    return F.relu(margin + own - nearest)
