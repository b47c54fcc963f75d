"""Which tiles and texts of a domain may belong together, where nobody has paired them.

Similarity across the two modalities is weak and full of hubs; similarity within each is strong. So each tile takes over
some of what its neighbours say, and each text of its own; then every tile and every text gets its fair share.

N = tiles, M = distinct texts, F = feature width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from urbancross.errors import ConfigError
from urbancross.pairs import Batch, Pairs

BLOCK = 4096  # rows of a similarity matrix that are held at once
AMONG_LOGS = 20  # rounds of scaling from one that is done among logarithms, where nothing underflows, to the next


def neighbours(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest other rows of each row by cosine, and how much each of them counts.

    Args:
        features: [N, F].
        count: neighbours per row; fewer where there are fewer rows.

    Returns:
        [N, count] int64 rows, [N, count] weights: cosines cut at 0, each row's sum 1 (0 where it has none).
    """
    rows = F.normalize(features, dim=1)
    count = min(count, len(rows) - 1)
    if count < 1:
        return torch.empty(len(rows), 0, dtype=torch.int64), torch.empty(len(rows), 0)
    found, near = [], []
    for start in range(0, len(rows), BLOCK):
        similarity = rows[start : start + BLOCK] @ rows.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        values, indices = similarity.topk(count, dim=1)
        found.append(indices)
        near.append(values.clamp(min=0))
    weights = torch.cat(near)
    return torch.cat(found), weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)


def spread(
    scores: Tensor, tiles: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor], share: float, rounds: int
) -> Tensor:
    """Mix each score with those of the neighbours of its tile and of its text, again and again.

    A <- (1 - share) S + share W A V^T, label spreading (Zhou et al., NIPS 2003, eq. 2) in both directions.

    Args:
        scores: [N, M].
        tiles: neighbours of tiles, from `neighbours`.
        texts: neighbours of texts.
        share: in [0, 1); 0 changes nothing.
        rounds: how far word gets about.

    Returns:
        [N, M].
    """
    if not 0 <= share < 1:
        raise ConfigError(f"a share of {share} taken from neighbours; wanted one in [0, 1)")
    mixed = scores
    for _ in range(rounds if share else 0):
        near = _averaged(_averaged(mixed, *tiles).T, *texts).T
        mixed = (1 - share) * scores + share * near
    return mixed


def _averaged(rows: Tensor, near: Tensor, weights: Tensor) -> Tensor:
    """Each row's weighted mean of its neighbours: [N, M]; rows without neighbours stay."""
    if not near.shape[1]:
        return rows
    # Never holds [N, count, M]; rows that do not lie together take thirty times as long.
    return F.embedding_bag(near, rows.contiguous(), mode="sum", per_sample_weights=weights)


def balanced(scores: Tensor, tile_share: Tensor, text_share: Tensor, temperature: float, rounds: int = 100) -> Tensor:
    """The plan that follows the scores while every tile and every text gets its share (Sinkhorn, arXiv 1306.0895).

    Without the shares a few texts, the hubs, would take most tiles.

    Args:
        scores: [N, M].
        tile_share: [N], sums to 1.
        text_share: [M], sums to 1: how often each text occurs in the domain.
        temperature: smaller is more certain.
        rounds: of scaling rows and columns.

    Returns:
        [N, M] not negative; columns sum to `text_share`, rows nearly to `tile_share`.
    """
    kernel = scores / temperature
    rows, columns = tile_share.log(), text_share.log()
    f = rows - torch.logsumexp(kernel, dim=1)
    g = columns - torch.logsumexp(kernel + f[:, None], dim=0)
    for first in range(1, rounds, AMONG_LOGS):
        f = rows - torch.logsumexp(kernel + g, dim=1)
        plan = (kernel + f[:, None] + g).exp()
        a, b = torch.ones_like(f), text_share / plan.sum(dim=0)
        for _ in range(min(AMONG_LOGS, rounds - first) - 1):  # products alone: many times faster
            a = tile_share / (plan @ b)
            b = text_share / (a @ plan)
        f, g = f + a.log(), g + b.log()
    return (kernel + f[:, None] + g).exp()


def hubness_corrected(scores: Tensor, count: int = 10) -> Tensor:
    """Take off each tile's and each text's mean score with its nearest partners (CSLS, arXiv 1710.04087, eq. 5).

    A text that is near to every tile is then no better a partner than one that is near to a single tile.

    Args:
        scores: [N, M] cosines.
        count: nearest partners.

    Returns:
        [N, M].
    """
    of_tile = scores.topk(min(count, scores.shape[1]), dim=1).values.mean(dim=1)
    of_text = scores.topk(min(count, scores.shape[0]), dim=0).values.mean(dim=0)
    return 2 * scores - of_tile[:, None] - of_text


def mutual(scores: Tensor) -> Tensor:
    """Tiles and texts that are each other's best partner.

    Args:
        scores: [N, M].

    Returns:
        [P, 2] int64, rows and columns.
    """
    text, tile = scores.argmax(dim=1), scores.argmax(dim=0)
    tiles = torch.arange(len(scores))
    tiles = tiles[tile[text] == tiles]
    return torch.stack([tiles, text[tiles]], dim=1)


@torch.no_grad()
def believed(embeddings: Tensor, others: Tensor, inverse_temperature: Tensor, barred: Tensor | None = None) -> Tensor:
    """The partner that the model takes each row to have: the mean of the others by its own chances, of unit length.

    Args:
        embeddings: [n, D] tiles, or texts.
        others: [m, D] of the other modality and the same domain.
        inverse_temperature: scalar, of the softmax over the others.
        barred: [n, m] bool, others that do not count for a row; not all of them.

    Returns:
        [n, D], without gradient.
    """
    scores = inverse_temperature * embeddings @ others.T
    if barred is not None:
        scores = scores.masked_fill(barred & ~barred.all(dim=1, keepdim=True), -torch.inf)
    return F.normalize(scores.softmax(dim=1) @ others, dim=1)


@dataclass(frozen=True)
class Pairing:
    """Which texts each tile of a domain may belong to, and how likely.

    Attributes:
        texts: [N, k] partners, as rows of `Pairs.texts`.
        chances: [N, k] of each; a row's sum is 1, or 0 for a tile without partner.
    """

    texts: Tensor
    chances: Tensor

    @property
    def partnered(self) -> int:
        """How many tiles have a partner."""
        return int(self.chances.any(dim=1).sum())

    def draw(self, count: int, captions: int, generator: torch.Generator) -> Batch:
        """`count` tiles that have partners, or all, each once, each with so many texts by their chances."""
        rows = self.chances.any(dim=1).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)[:count]]
        nth = torch.multinomial(self.chances[rows], captions, replacement=True, generator=generator)
        return Batch(rows, self.texts[rows].gather(1, nth))


def known(pairs: Pairs, share: float, generator: torch.Generator) -> Pairing:
    """The true pairs of a share of the tiles; no other tile has a partner."""
    counts = pairs.starts.diff()
    nth = torch.arange(int(counts.max()))
    there = nth < counts[:, None]
    unknown = torch.randperm(len(pairs), generator=generator)[max(round(share * len(pairs)), 1) :]
    chances = there / counts[:, None]
    chances[unknown] = 0
    return Pairing(pairs.starts[:-1, None] + torch.where(there, nth, 0), chances)


def nearest(scores: Tensor) -> Pairing:
    """Tiles and texts that are each other's best partner, the one partner of each."""
    pairs = mutual(hubness_corrected(scores))
    texts, chances = torch.zeros(len(scores), 1, dtype=torch.int64), torch.zeros(len(scores), 1)
    texts[pairs[:, 0], 0] = pairs[:, 1]
    chances[pairs[:, 0]] = 1.0
    return Pairing(texts, chances)


def transported(scores: Tensor, text_share: Tensor, temperature: float, most: int = 32) -> Pairing:
    """The likeliest `most` partners of each tile by the plan that gives every tile and every text its share."""
    plan = balanced(scores, torch.full((len(scores),), 1 / len(scores)), text_share, temperature)
    chances, texts = plan.topk(min(most, plan.shape[1]), dim=1)
    return Pairing(texts, chances / chances.sum(dim=1, keepdim=True))
