"""SAM's image encoder in fewer passes over memory; the numbers are those of `segment_anything`.

A plain ViT with windowed blocks and a few global ones. Attention adds a bias that is a sum of a row's and a column's
part: it is built for some queries at a time and handed to fused attention, so that no 4096 x 4096 scores lie in memory.
Projections and norms run on real tokens alone; what windows are padded with is known beforehand.

B = images, h, w = rows and columns of tokens, E = width, H = heads, D = width of a head, S = side of a window.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MLP_TOKENS = 512  # at once on a CPU, so that the hidden layer stays in the cache
BIAS_ELEMENTS = 1 << 22  # of attention bias at once on a CPU
BIAS_ELEMENTS_CUDA = 1 << 28


def encode(encoder: Any, images: Tensor) -> Tensor:
    """Normalised and padded images `[B, 3, side, side]` -> `[B, C, h, w]`, as the encoder's own forward gives it."""
    x = encoder.patch_embed(images)  # [B, h, w, E]
    x = (x + encoder.pos_embed).contiguous()
    for block in encoder.blocks:
        x += _attention(block.attn, block.norm1(x), block.window_size)
        _add_mlp(x, block)
    narrow, norm, smooth, last_norm = encoder.neck
    x = F.linear(x, narrow.weight.flatten(1))
    x = F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    x = F.conv2d(x.permute(0, 3, 1, 2), smooth.weight, padding=1).permute(0, 2, 3, 1)
    x = F.layer_norm(x, last_norm.weight.shape, last_norm.weight, last_norm.bias, last_norm.eps)
    return x.permute(0, 3, 1, 2)


def _add_mlp(x: Tensor, block: Any) -> None:
    flat = x.view(-1, x.shape[-1])
    for part in flat.split(len(flat) if x.is_cuda else MLP_TOKENS):
        part += block.mlp(block.norm2(part))


def _attention(attention: Any, x: Tensor, window: int) -> Tensor:
    """`[B, h, w, E]` -> the same; over all tokens if window is 0."""
    count, h, w, width = x.shape
    qkv = attention.qkv(x)  # [B, h, w, 3 * E]
    if not window:
        seen = _global(attention, qkv)
    else:
        down, right = -h % window, -w % window
        if down or right:  # a token of zeros, projected, is the bias
            bias = attention.qkv.bias
            padded = qkv.new_zeros(3 * width) if bias is None else bias
            whole = padded.expand(count, h + down, w + right, -1).clone()
            whole[:, :h, :w] = qkv
            qkv = whole
        seen = _windowed(attention, qkv, window)[:, :h, :w]
    return attention.proj(seen)


def _global(attention: Any, qkv: Tensor) -> Tensor:
    count, h, w, _ = qkv.shape
    heads = attention.num_heads
    q, k, v = qkv.view(count, h * w, 3, heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, h * w, D] each
    by_row, by_column = _bias(attention, q.unflatten(2, (h, w)))
    seen = torch.empty_like(v)
    budget = BIAS_ELEMENTS_CUDA if qkv.is_cuda else BIAS_ELEMENTS
    rows = max(1, budget // (count * heads * w * h * w))
    for top in range(0, h, rows):
        part = slice(top * w, (top + rows) * w)
        bias = _sum(by_row[:, :, top : top + rows], by_column[:, :, top : top + rows])
        seen[:, :, part] = F.scaled_dot_product_attention(q[:, :, part], k, v, attn_mask=bias)
    return seen.transpose(1, 2).reshape(count, h, w, -1)


def _windowed(attention: Any, qkv: Tensor, side: int) -> Tensor:
    """`[B, h, w, 3 * E]`, h and w multiples of `side`, -> `[B, h, w, E]`."""
    count, h, w, width = qkv.shape
    heads = attention.num_heads
    windows = qkv.view(count, h // side, side, w // side, side, 3, heads, -1)
    windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(1, 3)  # [3, windows, H, side, side, D]
    seen = []
    budget = BIAS_ELEMENTS_CUDA if qkv.is_cuda else BIAS_ELEMENTS
    for part in windows.split(max(1, budget // (heads * side**4)), dim=1):
        bias = _sum(*_bias(attention, part[0]))
        q, k, v = part.flatten(3, 4)
        seen.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
    out = torch.cat(seen).view(count, h // side, w // side, heads, side, side, -1)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(count, h, w, width // 3)


def _bias(attention: Any, q: Tensor) -> tuple[Tensor, Tensor]:
    """What a query `[B, H, h, w, D]` adds for each row and for each column of keys: `[B, H, h, w, h]`, `[..., w]`."""
    h, w, _ = q.shape[2:]
    by_row = torch.einsum("bnhwc,hkc->bnhwk", q, _table(attention.rel_pos_h, h))
    by_column = torch.einsum("bnhwc,wkc->bnhwk", q, _table(attention.rel_pos_w, w))
    return by_row, by_column


def _sum(by_row: Tensor, by_column: Tensor) -> Tensor:
    """`[B, H, q, w, h]` and `[B, H, q, w, w]` -> `[B, H, q * w, h * w]`."""
    bias = by_row.new_empty(*by_row.shape, by_column.shape[-1])
    torch.add(by_row[..., None], by_column[..., None, :], out=bias)
    return bias.flatten(4, 5).flatten(2, 3)


def _table(relative: Tensor, side: int) -> Tensor:
    """A vector for each distance -> one for each query and key of an axis, `[side, side, D]`."""
    at = torch.arange(side, device=relative.device)
    return relative[at[:, None] - at[None, :] + side - 1]
