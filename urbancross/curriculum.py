"""Which source pairs join at which stage, and how much each counts: the adaptive curriculum-based source sampler.

UrbanCross (arXiv 2404.14241) trains on the source pairs closest to the target first and lets farther ones join later.
Closeness comes from a frozen reference encoder, so it does not move while the trained one does. Everything is a
function of its arguments: `progress` runs from 0 at the first step to 1 at the last, and a restart needs nothing else.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from urbancross.errors import ConfigError, TrainingError

Pace = Literal["linear", "root", "step", "none", "anti", "random"]
Weighting = Literal["similarity", "iwan", "uniform", "shuffled"]

SPREAD = 1e-6
"""Added to the standard deviation of the closeness, so that ties divide by something."""


def pair_embedding(image: Tensor, text: Tensor) -> Tensor:
    """Join the two halves of a pair into one unit vector, h = normalise([v; u]), cut off from the graph.

    Args:
        image: [N, D] unit vectors from the frozen reference encoder.
        text: [N, D] likewise.

    Returns:
        [N, 2D].
    """
    return F.normalize(torch.cat([image, text], dim=-1).detach(), dim=-1)


def closeness(source_h: Tensor, target_h_mean: Tensor) -> Tensor:
    """Mean similarity of each source pair to all target pairs: a_j = mean_i h_i . h_j = h_j . mean_i h_i.

    Written the second way a source of any size costs one dot product per pair.

    Args:
        source_h: [N, E] from `pair_embedding`.
        target_h_mean: [E], mean over the target of the same; not normalised again.

    Returns:
        [N].
    """
    return source_h @ target_h_mean


def pace(progress: float, kind: Pace, start: float = 0.3, steps: int = 5) -> float:
    """Share of the source candidates that takes part at this point of training.

    Args:
        progress: clamped to [0, 1].
        kind: `linear`; `root`, quick at first (arXiv 1903.09848); `step`, `steps` equal stages of which the last takes
            all; `none`, always all. `anti` and `random` pace like `linear`, the difference is in `select`.
        start: share at progress 0, in (0, 1].
        steps: stages of `step`.

    Returns:
        A share in [start, 1] that never falls as progress grows, and is 1 at its end.
    """
    _known(kind, Pace)
    if not 0 < start <= 1 or steps < 1:
        raise ConfigError(f"pace starts at {start} in {steps} steps; wanted a start in (0, 1] and at least one step")
    p = min(max(progress, 0.0), 1.0)
    if kind == "none" or p == 1:
        return 1.0
    if kind == "root":
        share = math.sqrt(p * (1 - start**2) + start**2)
    elif kind == "step":
        stage = min(math.floor(p * steps + 1e-9), steps - 1)  # 0.58 * 50 is just short of 29
        share = start + (1 - start) * stage / (steps - 1) if steps > 1 else 1.0
    else:
        share = start + (1 - start) * p
    return min(max(share, start), 1.0)


def select(
    closeness: Tensor, fraction: float, kind: Pace = "linear", generator: torch.Generator | None = None
) -> Tensor:
    """Choose the ceil(fraction * N) source pairs that take part, of N candidates.

    On the same candidates a larger fraction keeps all that a smaller one took; for `random` that holds between
    generators of one seed. Ties go to the earlier row. Rows come back in the order they have among the candidates,
    so that a fraction of 1 changes nothing at all.

    Args:
        closeness: [N].
        fraction: in [0, 1], from `pace`; above 0 it takes at least one pair.
        kind: `random` draws from `generator`, `anti` takes the farthest, all others the closest.
        generator: needed by `random` only.

    Returns:
        [ceil(fraction * N)] int64, ascending.
    """
    _known(kind, Pace)
    if not 0 <= fraction <= 1:
        raise ConfigError(f"fraction {fraction} of the source pairs; wanted one in [0, 1]")
    n = len(closeness)
    wanted = math.ceil(round(fraction * n, 6))  # 0.07 * 100 is just above 7
    count = min(max(wanted, 1 if fraction > 0 else 0), n)
    if kind == "random":
        order = _permutation(n, generator).to(closeness.device)
    else:
        _check_finite(closeness, "closeness")  # NaN would sort as the closest of all
        order = torch.sort(closeness, descending=kind != "anti", stable=True).indices
    return order[:count].sort().values


def source_weights(
    closeness: Tensor,
    kind: Weighting,
    temperature: float = 1.0,
    w_min: float = 0.05,
    w_max: float = 5.0,
    logits: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One weight per source pair, without gradient, in [w_min, w_max] and with mean 1.

    `similarity` is N * softmax(b / temperature) of the standardised closeness b. Where a bound bites, all weights
    are scaled by the one factor that brings the mean of the *bounded* weights back to 1: order and ties stay, every
    weight between the bounds keeps its ratio to the others, and neither promise is traded for the other.

    Args:
        closeness: [N].
        kind: `similarity`; `iwan`, in proportion to 1 - sigmoid(logits), what a discriminator takes for target (IWAN,
            arXiv 1803.09210); `uniform`; `shuffled`, the similarity weights dealt out at random, as a control.
        temperature: of `similarity` and `shuffled`; smaller is sharper.
        w_min: above 0 and at most 1.
        w_max: at least 1.
        logits: [N], discriminator logits of the same rows, source being 1; needed by `iwan` only.
        generator: needed by `shuffled` only.

    Returns:
        [N], of the dtype of `closeness`.
    """
    _known(kind, Weighting)
    if not 0 < w_min <= 1 <= w_max or not temperature > 0:
        found = f"weights in [{w_min}, {w_max}] at temperature {temperature}"
        raise ConfigError(f"{found}; wanted 0 < w_min <= 1 <= w_max and a temperature above 0")
    if kind == "uniform" or len(closeness) == 0:
        return torch.ones_like(closeness, requires_grad=False)
    if kind == "iwan":
        if logits is None or logits.shape != closeness.shape:
            raise ConfigError("iwan weights need one discriminator logit per source pair")
        _check_finite(logits, "discriminator logit")
        weights = _bounded(F.logsigmoid(-logits.detach().double()), w_min, w_max)
    else:
        _check_finite(closeness, "closeness")
        a = closeness.detach().double()
        b = (a - a.mean()) / (a.std(correction=0) + SPREAD)
        weights = _bounded(b / temperature, w_min, w_max)
        if kind == "shuffled":
            weights = weights[_permutation(len(weights), generator).to(weights.device)]
    return weights.to(closeness.dtype)


def _bounded(log_weights: Tensor, w_min: float, w_max: float) -> Tensor:
    """Find c such that exp(clamp(log_weights + c, log w_min, log w_max)) has mean 1, by bisection; [N] float64.

    The mean grows with c, from w_min, where all are at the floor, to w_max: with w_min <= 1 <= w_max there is always
    a solution. Without bounds it is the softmax times N.
    """
    floor, ceiling = math.log(w_min), math.log(w_max)
    low, high = floor - log_weights.max(), ceiling - log_weights.min()
    for _ in range(64):
        middle = (low + high) / 2
        too_small = (log_weights + middle).clamp(floor, ceiling).exp().mean() < 1
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return (log_weights + high).clamp(floor, ceiling).exp()


def effective_sample_size(weights: Tensor) -> float:
    """How many equal weights would be worth as much: (sum w)^2 / sum w^2, between 1 and N; 0 where all are 0."""
    w = weights.detach().double()
    squares = float(w.square().sum())
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0


def reversal_strength(progress: float, maximum: float = 1.0, gamma: float = 10.0) -> float:
    """Strength for `losses.reverse_gradient`: from 0 to nearly `maximum` (DANN, arXiv 1409.7495).

    The discriminator is noise at first; the encoder should not listen to it yet.
    """
    p = min(max(progress, 0.0), 1.0)
    return maximum * (2 / (1 + math.exp(-gamma * p)) - 1)


def margin(progress: float, start: float = 0.2, end: float = 0.5) -> float:
    """Margin for `losses.weighted_triplet`, linear from `start` to `end`; UrbanCross goes from 0.5 to 1.5."""
    p = min(max(progress, 0.0), 1.0)
    return start + (end - start) * p


def _permutation(n: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ConfigError("a random choice needs a generator, so that it can be repeated")
    return torch.randperm(n, generator=generator, device=generator.device)


def _known(kind: str, kinds: object) -> None:
    if kind not in get_args(kinds):
        raise ConfigError(f"unknown kind {kind!r}; wanted one of {', '.join(get_args(kinds))}")


def _check_finite(values: Tensor, name: str) -> None:
    wrong = (~torch.isfinite(values)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise TrainingError(f"{name} of source pair {first} is {float(values[first])}; look at what encoded it")
