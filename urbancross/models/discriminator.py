"""One logit for an embedding: is it of the source domain?"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """`[B, D]` to logits `[B]`; above 0 means source.

    Every layer is kept at spectral norm 1 (Miyato et al., arXiv 1802.05957): without that bound the discriminator soon
    separates the two domains so sharply that its gradient leads the encoder nowhere, and adaptation loses recall.

    A conditional one sees an embedding f together with the partner g that the model believes it has, as the randomised
    multilinear map (R_f f) * (R_g g) of CDAN (Long et al., arXiv 1705.10667, section 3.2), here of unit variance: so it
    can tell domains apart whose embeddings lie alike and mean other things.
    """

    maps: Tensor  # [2, D, D] of a conditional one, drawn once

    def __init__(self, width: int, hidden: int = 128, conditional: bool = False) -> None:
        super().__init__()
        if conditional:
            self.register_buffer("maps", torch.randn(2, width, width))
        self.layers = nn.Sequential(
            spectral_norm(nn.Linear(width, hidden)),
            nn.GELU(),
            spectral_norm(nn.Linear(hidden, hidden)),
            nn.GELU(),
            spectral_norm(nn.Linear(hidden, 1)),
        )

    def forward(self, embeddings: Tensor, partners: Tensor | None = None) -> Tensor:
        if partners is None:
            seen = embeddings * embeddings.shape[-1] ** 0.5  # unit vectors to unit variance
        else:
            seen = (embeddings @ self.maps[0]) * (partners @ self.maps[1])  # unit variance already
        return self.layers(seen).squeeze(-1)
