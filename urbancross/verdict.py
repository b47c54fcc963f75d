"""Whether an adaptation was worth it, said without a single target pair.

Tiles that look alike to the frozen image tower should find texts that mean alike to the frozen text tower. How far
that holds is measured on kept-back tiles and texts of the target, whose pairing is not used. It says nothing of a model
that is wrong in an orderly way, so it judges between a model and what it was adapted from, and measures neither.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from urbancross.models.dual_encoder import DualEncoder
from urbancross.pairs import Pairs

FILE = "verdict.json"  # in the checkpoint
SHARPNESS = 50.0  # inverse temperature at which a tile's texts are averaged
MOST = 2000  # tiles that are compared with each other


@dataclass(frozen=True)
class Verdict:
    """What adaptation did to the agreement of the target's tiles with its texts.

    Attributes:
        before, after: mean agreement, from -1 to 1.
        change: their difference, with the ends of its 95 % interval over tiles.
        adapt: whether the whole interval lies above zero.
    """

    before: float
    after: float
    change: float
    low: float
    high: float
    adapt: bool

    def __str__(self) -> str:
        told = f"agreement on the target {self.before:.3f} before, {self.after:.3f} after"
        span = f"change {self.change:+.3f}, 95 % {self.low:+.3f} to {self.high:+.3f}"
        advice = "use the adapted model" if self.adapt else "do not adapt: keep the model that it began with"
        return f"{advice} ({told}; {span})"


@torch.no_grad()
def agreement(encoder: DualEncoder, target: Pairs) -> Tensor:
    """For each tile, how well what its texts mean goes with how it looks: [N], correlations.

    A tile's text is the mean of all texts by how well they fit, as the tower that reads them sees them. The correlation
    is between the cosines of a tile with all others, and those of its text with theirs. Neither side knows a pairing.

    Args:
        target: tiles and texts, at least three of each.
    """
    rows, shares = target.distinct_texts()
    tiles = torch.arange(len(target))[:: -(-len(target) // MOST)]
    v = encoder.heads["image"](target.images[tiles].to(encoder.device)).cpu()
    u = encoder.heads["text"](target.texts[rows].to(encoder.device)).cpu()
    look, mean = target.images[tiles], target.texts[rows]
    look, mean = normalize(look - look.mean(dim=0), dim=1), normalize(mean - shares @ mean, dim=1)
    told = normalize((SHARPNESS * v @ u.T).softmax(dim=1) @ mean, dim=1)
    return _row_correlations(look @ look.T, told @ told.T)


def _row_correlations(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's of each pair of rows without their diagonal: [N, N], [N, N] to [N]."""
    others = ~torch.eye(len(a), dtype=torch.bool)
    a, b = (x[others].unflatten(0, (len(a), len(a) - 1)) for x in (a, b))
    a, b = (normalize(x - x.mean(dim=1, keepdim=True), dim=1) for x in (a, b))
    return (a * b).sum(dim=1)


def judge(before: Tensor, after: Tensor, bootstrap: int = 1000, seed: int = 0) -> Verdict:
    """
    Args:
        before, after: [N] from `agreement`, of the same tiles.
        bootstrap: resamples of tiles.
        seed: of the resamples.
    """
    change = (after - before).double().numpy()
    even = np.full(len(change), 1 / len(change))
    drawn = np.random.default_rng(seed).multinomial(len(change), even, size=bootstrap)
    low, high = np.quantile(drawn @ change / len(change), [0.025, 0.975])
    return Verdict(
        float(before.mean()), float(after.mean()), float(change.mean()), float(low), float(high), bool(low > 0)
    )
