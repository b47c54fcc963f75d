"""The image tower of a CLIP model (Radford et al. 2021; a ViT, Dosovitskiy et al. 2021), for embedding alone.

Its parameters are open_clip's, by the same names, and so are its features. open_clip and the libraries of its other
models need not be imported for it, and its last block works out the class token alone: no other is looked at after it.
"""

from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from urbancross.models import plain

# Settings that change nothing once a model has learnt, and those that are heeded here.
HEEDED = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "patch_dropout"}


def is_one(told: dict[str, Any]) -> bool:
    """Whether a model of such settings (see `models.plain`) has an image tower as this one is."""
    vision = told["model_cfg"]["vision_cfg"]
    sizes = [vision.get(name, 0) for name in ("image_size", "patch_size", "layers")]
    return vision.keys() <= HEEDED and all(isinstance(size, int) for size in sizes)


def of(base: str, told: dict[str, Any]) -> "ImageTower | None":
    """The tower of a model with its weights, or None: it is another one, or its weights lie otherwise."""
    file = plain.weight_file(base)
    if file is None or file.suffix != ".safetensors" or not is_one(told):
        return None
    tower, start = ImageTower(told), "visual."
    with safe_open(file, "pt") as tensors:
        found = {name: tensors.get_slice(name) for name in tensors.keys() if name.startswith(start)}  # noqa: SIM118
        if {name: found[name].get_shape() for name in found} != {
            start + name: list(tensor.shape) for name, tensor in tower.state_dict().items()
        }:
            return None
        tower.load_state_dict({name.removeprefix(start): tensors.get_tensor(name) for name in found})
    return tower


class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing is drawn: a file says what the weights are."""


class Patches(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Likewise."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, tokens: Tensor, asking: int | None) -> Tensor:
        """What the first `asking` (None: all) of the tokens `[B, L, W]` make of them all: `[B, asking, W]`."""
        width = tokens.shape[-1]
        if asking is None:
            q, k, v = functional.linear(tokens, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            of_q, of_kv = self.in_proj_weight.split([width, 2 * width])
            bias_q, bias_kv = self.in_proj_bias.split([width, 2 * width])
            q = functional.linear(tokens[:, :asking], of_q, bias_q)
            k, v = functional.linear(tokens, of_kv, bias_kv).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.out_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, quick: bool) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": Linear(width, hidden), "c_proj": Linear(hidden, width)})
        self.quick = quick

    def forward(self, tokens: Tensor, asking: int | None = None) -> Tensor:
        """`[B, L, W]` to `[B, L, W]`, or the first `asking` of it."""
        tokens = tokens[:, :asking] + self.attn(self.ln_1(tokens), asking)
        hidden = self.mlp["c_fc"](self.ln_2(tokens))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else functional.gelu(hidden)
        return tokens + self.mlp["c_proj"](hidden)


class ImageTower(nn.Module):
    """Pixels `[B, 3, S, S]` to features `[B, F]`; its weights are yet to be filled in."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__()
        model = told["model_cfg"]
        vision = model["vision_cfg"]
        width, patch = vision.get("width", 768), vision.get("patch_size", 16)
        heads, hidden = width // vision.get("head_width", 64), int(width * vision.get("mlp_ratio", 4.0))
        self.conv1 = Patches(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((plain.side(told) // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        quick = bool(model.get("quick_gelu", False))
        blocks = [Block(width, heads, hidden, quick) for _ in range(vision.get("layers", 12))]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.proj = nn.Parameter(torch.empty(width, model["embed_dim"]))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # [B, L - 1, W]
        tokens = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        tokens = self.ln_pre(tokens + self.positional_embedding)
        blocks: Any = self.transformer["resblocks"]
        for block in blocks[:-1]:
            tokens = block(tokens)
        return self.ln_post(blocks[-1](tokens, asking=1)[:, 0]) @ self.proj


class ImagesOnly(nn.Module):
    """Stands for an open_clip model where no text is read."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.visual(pixels)
