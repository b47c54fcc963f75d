"""Two towers and three heads: tiles, texts and segments as unit vectors in one space."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from urbancross.models.names import EXTRA
from urbancross.models.query_bank import QueryBank

MAX_SCALE = 100.0  # CLIP's bound on the inverse temperature (Radford et al. 2021, section 2.5)


class Head(nn.Module):
    """Features of a tower `[B, F]` to a unit vector `[B, D]`, through one hidden layer.

    Attributes:
        centre: [D] what is taken off the unit vector before it is scaled to unit length again; see `adaptation`.
    """

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.hidden = nn.Linear(features, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(2 * width, width)
        self.register_buffer("centre", torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.dropout(functional.gelu(self.hidden(self.norm(features))))
        return _about(self.centre, functional.normalize(self.project(hidden), dim=-1))


class IdentityHead(nn.Module):
    """For a model whose towers share a space already: a linear map that starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.project.weight)
        self.register_buffer("centre", torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        return _about(self.centre, functional.normalize(self.project(features), dim=-1))


def _about(centre: Any, embeddings: Tensor) -> Tensor:
    """Unit vectors `[B, D]` as seen from a point `[D]`; from zero, as they are."""
    return functional.normalize(embeddings - centre, dim=-1)


class DualEncoder(nn.Module):
    """An open_clip model and the heads on its towers.

    Attributes:
        width: D, the width of the shared space.
        views: int64, of how many of its eight turns and flips (see `turned`) the embedding of a tile is the mean.
        image_width, text_width: F, the widths of the towers' features.
        image_px: side of the square that the image tower takes.
        bank: takes hubness off what the `encode_*` say; None: they say it plainly.
        plain: settings of an open_clip model, see `models.plain`; None for others.
    """

    def __init__(
        self,
        towers: Any,
        heads: dict[str, nn.Module],
        tokenizer: Any,
        *,
        image_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_width: int,
        text_width: int,
        width: int,
        plain: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.plain = plain
        self.towers: Any = towers  # an open_clip model
        self.tokenizer = tokenizer  # called as open_clip's are: texts, context_length -> [B, L]
        self.heads = nn.ModuleDict(heads)  # image, text, segment
        self.scale = nn.Parameter(torch.tensor(20.0).log())  # log of the inverse temperature
        self.views: Tensor
        self.register_buffer("views", torch.tensor(1))
        self.image_px, self.image_width, self.text_width, self.width = image_px, image_width, text_width, width
        self.mean, self.std = tuple(mean), tuple(std)
        self.bank: QueryBank | None = None
        self.segment_tower: Any = None  # of its own, where the image tower has moved on

    @property
    def device(self) -> torch.device:
        return self.scale.device

    @property
    def vector_width(self) -> int:
        """Of the vectors that `encode_images`, `encode_segments` and `encode_texts` give."""
        return self.width + (0 if self.bank is None else EXTRA)

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour of 8 bits, which preprocessing turns into zeros; what a crop shows outside its mask."""
        red, green, blue = (round(255 * mean) for mean in self.mean)
        return red, green, blue

    def inverse_temperature(self) -> Tensor:
        return self.scale.exp().clamp(max=MAX_SCALE)

    def unlock_image_tower(self, groups: int | None = None) -> list[nn.Parameter]:
        """Let the last `groups` layer groups of the image tower learn (None: all), and return their parameters.

        Groups are counted as open_clip's `--lock-image-unlocked-groups` does. The layers below them get no gradient,
        so the way back through the first, largest feature maps is saved.
        """
        for parameter in self.towers.visual.parameters():
            parameter.requires_grad_(True)
        if groups is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # open_clip imports timm by an older name
                self.towers.lock_image_tower(unlocked_groups=groups, freeze_bn_stats=False)
        return [parameter for parameter in self.towers.visual.parameters() if parameter.requires_grad]

    def unlock_text_tower(self) -> list[nn.Parameter]:
        """Let the text tower learn, and return its parameters."""
        tower = set(self.towers.visual.parameters()) | {self.towers.logit_scale}
        return [parameter.requires_grad_(True) for parameter in self.towers.parameters() if parameter not in tower]

    def keep_segment_tower(self) -> None:
        """Let segments be seen from here on by the image tower as it is now, however it learns."""
        if self.segment_tower is None:
            self.segment_tower = copy.deepcopy(self.towers.visual).requires_grad_(False).eval()

    def see_segments_as_tiles(self) -> None:
        """Embed segments as tiles are, where nothing has been learnt from them."""
        self.segment_tower = None
        self.heads["segment"].load_state_dict(self.heads["image"].state_dict())

    def image_features(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W]` uint8 to the image tower's features `[B, F]`."""
        return self.towers.encode_image(self._standardised(pixels))

    def segment_features(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W]` uint8 to the segment tower's features `[B, F]`."""
        return (self.segment_tower or self.towers.encode_image)(self._standardised(pixels))

    def _standardised(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device).float() / 255
        mean = torch.tensor(self.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.std, device=self.device)[:, None, None]
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """B texts to the text tower's features `[B, F]`."""
        return self.token_features(self.tokenizer(list(texts)))

    def token_features(self, tokens: Tensor) -> Tensor:
        """`[B, L]` tokens to the text tower's features `[B, F]`."""
        return self.towers.encode_text(tokens.to(self.device))

    def reads_whole(self, text: str) -> bool:
        """Whether the text tower reads a text to its end."""
        limit = self.tokenizer.context_length
        if len(text) + 2 <= limit:  # a token is a character at least
            return True
        tokens, blank = self.tokenizer([text], 4 * limit)[0], self.tokenizer(["", text], 4 * limit)[0, -1]
        return int((tokens != blank).sum()) <= limit

    def encode_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """B tiles `[H, W, 3]` uint8 to unit vectors `[B, vector_width]` float32."""
        return self._corrected("tiles", self._encode("image", images))

    def encode_image_queries(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """B pictures `[H, W, 3]` uint8 to vectors `[B, vector_width]`, nearest to the tiles that are like them."""
        return self._corrected("queries", self._encode("image", images))

    @torch.inference_mode()
    def as_queries(self, vectors: np.ndarray) -> np.ndarray:
        """Stored vectors of tiles `[B, vector_width]` to what `encode_image_queries` would make of their images."""
        if self.bank is None:
            return vectors
        plain = functional.normalize(torch.from_numpy(vectors)[:, : self.width].to(self.device), dim=-1)
        return self.bank.of_queries(plain).cpu().numpy()

    def encode_segments(self, crops: Sequence[np.ndarray], batch: int = 64) -> np.ndarray:
        """B crops `[h, w, 3]` uint8 to unit vectors `[B, vector_width]` float32."""
        parts = [
            self._corrected("tiles", self._encode("segment", crops[i : i + batch])) for i in range(0, len(crops), batch)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.vector_width), np.float32)

    @torch.inference_mode()
    def _corrected(self, kind: str, vectors: Tensor) -> np.ndarray:
        """Unit vectors `[B, D]` as they are stored or asked with."""
        bank = self.bank
        if bank is not None:
            vectors = {"tiles": bank.of_tiles, "texts": bank.of_texts, "queries": bank.of_queries}[kind](vectors)
        return vectors.cpu().numpy()

    @torch.inference_mode()
    def _encode(self, head: str, images: Sequence[np.ndarray]) -> Tensor:
        """To unit vectors `[B, D]`."""
        pixels = torch.from_numpy(np.stack([square(image, self.image_px) for image in images]))
        see = self.segment_features if head == "segment" else self.image_features
        pixels = pixels.permute(0, 3, 1, 2)
        views = int(self.views) if head == "image" else 1
        seen = sum(self.heads[head](see(turned(pixels, nth))).float() for nth in range(views))
        assert isinstance(seen, Tensor)
        return functional.normalize(seen, dim=-1) if views > 1 else seen

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch: int = 128) -> np.ndarray:
        """B texts to unit vectors `[B, vector_width]` float32; equal texts are encoded once."""
        return self._corrected("texts", self.heads["text"](self.distinct_text_features(texts, batch)).float())

    @torch.inference_mode()
    def distinct_text_features(self, texts: Sequence[str], batch: int = 128) -> Tensor:
        """`text_features` of B texts `[B, F]`, equal texts once, like lengths together."""
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        parts = [self.text_features(distinct[i : i + batch]) for i in range(0, len(distinct), batch)]
        row = {text: i for i, text in enumerate(distinct)}
        if not parts:
            return torch.empty(0, self.text_width, device=self.device)
        return torch.cat(parts)[[row[text] for text in texts]]


def turned(pixels: Tensor, nth: int) -> Tensor:
    """`[..., S, S]` in the `nth` of the eight turns and flips of a square: 0 as it is, 1 to 3 turned by as many right
    angles, 4 to 7 likewise and mirrored."""
    pixels = torch.rot90(pixels, nth % 4, (-2, -1))
    return pixels.flip(-1) if nth >= 4 else pixels


def square(image: np.ndarray, side: int) -> np.ndarray:
    """`[H, W, 3]` uint8 to `[side, side, 3]`: shorter side resized (bicubic), centre cropped."""
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    columns, rows = max(side, round(width * scale)), max(side, round(height * scale))  # of the whole image, resized
    left, top = (columns - side) // 2, (rows - side) // 2
    # Only the part that is kept is computed: the whole of a thin strip, resized, could fill the memory.
    box = (left * width / columns, top * height / rows, (left + side) * width / columns, (top + side) * height / rows)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))
