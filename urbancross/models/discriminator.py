"""One logit for an embedding: is it of the source domain?"""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """`[B, D]` to logits `[B]`; above 0 means source.

    Every layer is kept at spectral norm 1 (Miyato et al., arXiv 1802.05957): without that bound the discriminator soon
    separates the two domains so sharply that its gradient leads the encoder nowhere, and adaptation loses recall.
    """

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Linear(width, hidden)),
            nn.GELU(),
            spectral_norm(nn.Linear(hidden, hidden)),
            nn.GELU(),
            spectral_norm(nn.Linear(hidden, 1)),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings * embeddings.shape[-1] ** 0.5).squeeze(-1)  # unit vectors to unit variance
