"""One logit for an embedding: is it of the source domain?"""

from torch import Tensor, nn


class Discriminator(nn.Module):
    """`[B, D]` to logits `[B]`; above 0 means source."""

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings * embeddings.shape[-1] ** 0.5).squeeze(-1)  # unit vectors to unit variance
