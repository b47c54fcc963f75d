"""Hubness taken off: a tile that is near to every text, or a text near to every tile, is found less for it."""

import math

import torch
from torch import Tensor, nn

from urbancross.models.names import EXTRA

INVERSE_TEMPERATURE = 10.0
SIZE = 1000  # tiles and captions of a bank
FEWEST = 100  # tiles of one: a few say more of themselves than of hubs
RADIUS = 0.5  # r below: what each of the two further pairs of coordinates is long
MOST = RADIUS**2  # of a tile's or a text's hubness about the mean
LENGTH = (1 + 2 * RADIUS**2) ** 0.5  # of all coordinates together, which is divided by


class QueryBank(nn.Module):
    """Vectors of n tiles and m texts that nobody looks for, and what they say of others.

    The hubness of a tile is its mean similarity to the texts of the bank, h(v) = log mean_j exp(b u_j.v) / b, less its
    mean over the bank's tiles, and at most 1/4 either way; that of a text likewise. Scores are
    s(v, u) = (u.v - h(v) - h(u)) / 1.5: the logarithm of the inverted softmax (Smith et al., arXiv 1702.03859), both
    ways, by a bank that nobody asks for (QB-Norm, arXiv 2112.12777). Both are written into further coordinates, so that
    the score is the cosine of two unit vectors and any index of vectors finds by it:

        tile [v, -h(v)/r, r, p(v), 0]    text [u, r, -h(u)/r, 0, p(u)]    r = 1/2, p(x) = sqrt(r^2 - h(x)^2/r^2)

    Attributes:
        tiles, texts: [n, D] and [m, D] unit vectors of the space.
        means: [2] mean of log mean exp / b over the bank's tiles and over its texts.
        inverse_temperature: b.
    """

    def __init__(self, tiles: int, texts: int, width: int) -> None:
        super().__init__()
        self.tiles: Tensor
        self.texts: Tensor
        self.means: Tensor
        self.inverse_temperature: Tensor
        self.register_buffer("tiles", torch.zeros(tiles, width))
        self.register_buffer("texts", torch.zeros(texts, width))
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("inverse_temperature", torch.tensor(INVERSE_TEMPERATURE))

    @classmethod
    def of(cls, tiles: Tensor, texts: Tensor) -> "QueryBank":
        """
        Args:
            tiles, texts: [n, D] and [m, D] unit vectors; which text belongs to which tile does not matter.
        """
        bank = cls(len(tiles), *texts.shape).to(tiles.device)
        bank.tiles.copy_(tiles)
        bank.texts.copy_(texts)
        means = [bank._nearness(rows, others).mean() for rows, others in ((bank.tiles, texts), (bank.texts, tiles))]
        bank.means.copy_(torch.stack(means))
        return bank

    def of_tiles(self, v: Tensor) -> Tensor:
        """Unit vectors of tiles, or of segments, `[B, D]` to unit vectors `[B, D + EXTRA]`."""
        hubness, room = self._hubness(v, self.texts, self.means[0])
        return _joined(v, hubness, torch.full_like(room, RADIUS), room, torch.zeros_like(room))

    def of_texts(self, u: Tensor) -> Tensor:
        """Unit vectors of texts `[B, D]` to unit vectors `[B, D + EXTRA]`."""
        hubness, room = self._hubness(u, self.tiles, self.means[1])
        return _joined(u, torch.full_like(room, RADIUS), hubness, torch.zeros_like(room), room)

    def of_queries(self, v: Tensor) -> Tensor:
        """Unit vectors of pictures `[B, D]` to vectors `[B, D + EXTRA]` that find tiles in the order of plain cosines.

        As long in the space as those of texts, so that in a sum both count alike.
        """
        return nn.functional.pad(v / LENGTH, (0, EXTRA))

    def _hubness(self, rows: Tensor, others: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """-h / r and p, each `[B]`."""
        found = (self._nearness(rows, others) - mean).clamp(-MOST, MOST) / RADIUS
        return -found, (RADIUS**2 - found**2).clamp(min=0).sqrt()

    def _nearness(self, rows: Tensor, others: Tensor) -> Tensor:
        """log mean_j exp(b x.y_j) / b of each row x: `[B]`."""
        scores = self.inverse_temperature * rows @ others.T
        return (torch.logsumexp(scores, dim=1) - math.log(len(others))) / self.inverse_temperature


def _joined(vectors: Tensor, *further: Tensor) -> Tensor:
    joined = torch.cat([vectors, torch.stack(further, dim=1)], dim=1) / LENGTH
    return nn.functional.pad(joined, (0, EXTRA - len(further)))
