"""SAM's prompt encoder and mask decoder for many single points over one image, with the arithmetic reordered.

The masks are those of `segment_anything`; three things make them cheaper. A point has T = 7 tokens (one for the
predicted IoU, four for masks, the point, and "not a point") and the image L = 4096 positions, so a projection shared by
all positions is moved over to the tokens: (q W_q) (x W_k)^T = ((q W_q) W_k^T) x^T. What does not depend on the point is
computed once an image. And a point's masks are drawn only where the predicted IoU wants them.

P = points, T = tokens, L = image positions, C = width, H = heads, D = width of a head, M = masks a point.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DRAW_ELEMENTS = 1 << 17  # of image positions drawn at once on a CPU, so that what they grow to stays in its cache


@dataclass(frozen=True)
class Cross:
    """An attention between tokens and image, a row of weights per head.

    Attributes:
        token: [H, D, C], [H, D]: projects tokens to queries (or keys), scaled by 1 / sqrt(D).
        token_value: the same for their values; None where the image's are taken.
        image: [H, D, C], [H, D]: projects image positions to keys (or queries).
        image_value: the same for their values; None where the tokens' are taken.
        out: [H, D, C], [C].
    """

    token: tuple[Tensor, Tensor]
    token_value: tuple[Tensor, Tensor] | None
    image: tuple[Tensor, Tensor]
    image_value: tuple[Tensor, Tensor] | None
    out: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Decoder:
    """Weights of a mask decoder in the order in which they are used; `fold` makes it."""

    sam: Any
    size: tuple[int, int]
    position: Tensor  # [L, C]
    to_image: tuple[Cross, ...]  # the last one is the final attention
    from_image: tuple[Cross, ...]
    up: tuple[Tensor, Tensor, Tensor, Tensor, float]
    up_again: tuple[Tensor, Tensor]
    hyper: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class ImageSide:
    """What all points of an image share: its positions, and the first layer's projections of them."""

    x: Tensor  # [L, C]
    keys: Tensor  # [H, D, L]
    values: Tensor  # [H, L, D]
    queries: Tensor  # [H, D, L]


def fold(sam: Any, size: tuple[int, int]) -> Decoder:
    """Lay the decoder's weights out for use.

    Args:
        sam: the model.
        size: rows and columns of the image embedding.
    """
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    dtype = decoder.iou_token.weight.dtype
    position = prompts.pe_layer(size).flatten(1).T.to(dtype).contiguous()
    layers = list(decoder.transformer.layers)
    attentions = [layer.cross_attn_token_to_image for layer in layers] + [decoder.transformer.final_attn_token_to_image]
    first, norm, _, second, _ = decoder.output_upscaling
    # The 2 x 2 convolutions of stride 2 are products with [C, 2 * 2 * C']. The norm that follows subtracts the mean
    # over C', which is linear: it goes into the weights.
    weight = first.weight.permute(0, 2, 3, 1)
    weight, bias = weight - weight.mean(-1, keepdim=True), first.bias - first.bias.mean()
    heads = list(decoder.output_hypernetworks_mlps)[1:]  # the mask of the first token is for several prompts
    return Decoder(
        sam=sam,
        size=size,
        position=position,
        to_image=tuple(_cross(a, a.q_proj, None, a.k_proj, a.v_proj) for a in attentions),
        from_image=tuple(
            _cross(a, a.k_proj, a.v_proj, a.q_proj, None) for a in (layer.cross_attn_image_to_token for layer in layers)
        ),
        up=(weight.flatten(1).contiguous(), bias.repeat(4), norm.weight, norm.bias, norm.eps),
        up_again=(second.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), second.bias.repeat(4)),
        hyper=tuple(
            (torch.stack([mlp.weight.T for mlp in step]), torch.stack([mlp.bias for mlp in step])[:, None])
            for step in zip(*(head.layers for head in heads), strict=True)
        ),
    )


def image_side(decoder: Decoder, embedding: Tensor) -> ImageSide:
    """Everything of an image `[C, h, w]` that its points share."""
    prompts = decoder.sam.prompt_encoder
    x = (embedding.flatten(1).T + prompts.no_mask_embed.weight).to(decoder.position.dtype)
    placed = x + decoder.position
    to_image, from_image = decoder.to_image[0], decoder.from_image[0]
    assert to_image.image_value is not None
    return ImageSide(
        x=x.contiguous(),
        keys=_project(placed, to_image.image).mT.contiguous(),
        values=_project(x, to_image.image_value).contiguous(),
        queries=_project(placed, from_image.image).mT.contiguous(),
    )


def point_tokens(decoder: Decoder, points: Tensor) -> Tensor:
    """`[P, 2]` x, y in pixels of the model's input -> `[P, T, C]`; one positive point each."""
    prompts, weights = decoder.sam.prompt_encoder, decoder.sam.mask_decoder
    placed = prompts.pe_layer.forward_with_coords((points + 0.5)[:, None], prompts.input_image_size)  # [P, 1, C]
    placed = placed + prompts.point_embeddings[1].weight
    shared = torch.cat([weights.iou_token.weight, weights.mask_tokens.weight])
    count = len(points)
    nothing = prompts.not_a_point_embed.weight.expand(count, 1, -1)
    return torch.cat([shared.expand(count, -1, -1), placed.to(shared.dtype), nothing.to(shared.dtype)], dim=1)


def attend(decoder: Decoder, side: ImageSide, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run points and image against each other.

    Args:
        decoder: from `fold`.
        side: from `image_side`.
        tokens: [P, T, C] from `point_tokens`.

    Returns:
        The predicted IoU of each mask [P, M], what draws them [P, M, C // 8], and the image as each point left it
        [P, L, C].
    """
    model = decoder.sam.mask_decoder
    count = len(tokens)
    x = side.x.expand(count, -1, -1)
    queries = tokens
    for number, layer in enumerate(model.transformer.layers):
        if layer.skip_first_layer_pe:
            queries = _self_attention(layer.self_attn, queries, queries)
        else:
            queries = queries + _self_attention(layer.self_attn, queries + tokens, queries)
        queries = layer.norm1(queries)
        to_image, from_image = decoder.to_image[number], decoder.from_image[number]
        if number == 0:
            seen = _to_shared_image(to_image, queries + tokens, side)
        else:
            placed = x + decoder.position
            seen = _to_image(to_image, queries + tokens, x, placed)
        queries = layer.norm2(queries + seen)
        queries = layer.norm3(queries + layer.mlp(queries))
        if number == 0:
            scores = _scores_of_shared_image(from_image, queries + tokens, side)
        else:
            scores = _scores_of_image(from_image, queries + tokens, placed)
        x = layer.norm4(_from_tokens(from_image, scores, queries, x))
    wanted = [0, *range(2, 1 + model.num_mask_tokens)]  # only these tokens are read below
    final = queries[:, wanted]
    seen = _to_image(decoder.to_image[-1], final + tokens[:, wanted], x, x + decoder.position)
    final = model.transformer.norm_final_attn(final + seen)
    drawing = final[:, 1:].transpose(0, 1)  # [M, P, C]
    for number, (weight, bias) in enumerate(decoder.hyper):
        drawing = torch.baddbmm(bias, F.relu(drawing) if number else drawing, weight)
    return model.iou_prediction_head(final[:, 0])[:, 1:].float(), drawing.transpose(0, 1), x


def draw(decoder: Decoder, drawing: Tensor, x: Tensor, rows: int, columns: int) -> Tensor:
    """The masks of points, four times as fine as the image embedding.

    Args:
        decoder: from `fold`.
        drawing: [P, M, C // 8] from `attend`; any number of masks.
        x: [P, L, C] from `attend`.
        rows: of the image embedding that matter; the rest is padding.
        columns: the same.

    Returns:
        [P, M, 4 * rows, 4 * columns] logits.
    """
    count, masks, _ = drawing.shape
    x = x.view(count, *decoder.size, -1)[:, :rows, :columns]
    out = x.new_empty(count, masks, rows, 2, 2, columns, 2, 2)
    # On a CPU a few rows at a time, so that what lies between two products stays in the cache.
    at_once = rows if x.is_cuda else max(1, DRAW_ELEMENTS // (count * columns * x.shape[-1]))
    for part in in_chunks(rows, at_once):
        finer = _upscale(decoder, x[:, part].flatten(0, 2)).view(count, -1, drawing.shape[-1])
        drawn = torch.bmm(finer, drawing.mT)  # [P, rows * columns * 16, M]
        # Row and column, then the halves of both, then the quarters.
        drawn = drawn.view(count, -1, columns, 2, 2, 2, 2, masks)
        out[:, :, part] = drawn.permute(0, 7, 1, 3, 5, 2, 4, 6)
    return out.view(count, masks, 4 * rows, 4 * columns)


def _upscale(decoder: Decoder, x: Tensor) -> Tensor:
    """`[N, C]` -> `[N, 16 * C // 8]`."""
    weight, bias, scale, shift, eps = decoder.up
    fine = torch.addmm(bias, x, weight).view(4 * len(x), -1)
    # The mean over channels is 0 already.
    spread = torch.linalg.vector_norm(fine, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(fine.shape[1])
    fine = torch.addcmul(shift, fine.mul_(spread.add_(eps).rsqrt_()), scale)
    weight, bias = decoder.up_again
    return F.gelu(torch.addmm(bias, F.gelu(fine), weight)).view(len(x), -1)


def in_chunks(total: int, at_once: int) -> Iterator[slice]:
    """Slices that cover range(total), at_once or fewer in each."""
    return (slice(start, min(start + at_once, total)) for start in range(0, total, at_once))


def _cross(
    attention: Any,
    token: nn.Linear,
    token_value: nn.Linear | None,
    image: nn.Linear,
    image_value: nn.Linear | None,
) -> Cross:
    heads = attention.num_heads
    scale = 1 / math.sqrt(attention.internal_dim // heads)

    def by_head(layer: nn.Linear, by: float = 1.0) -> tuple[Tensor, Tensor]:
        return layer.weight.view(heads, -1, layer.in_features) * by, layer.bias.view(heads, -1) * by

    out = attention.out_proj
    return Cross(
        token=by_head(token, scale),
        token_value=None if token_value is None else by_head(token_value),
        image=by_head(image),
        image_value=None if image_value is None else by_head(image_value),
        out=(out.weight.T.reshape(heads, -1, out.out_features), out.bias),
    )


def _project(x: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    """`[..., C]` -> `[H, N, D]`, where N is all positions or tokens."""
    weight, bias = layer
    heads, width, _ = weight.shape
    flat = F.linear(x.reshape(-1, x.shape[-1]), weight.flatten(0, 1), bias.flatten())
    return flat.view(-1, heads, width).transpose(0, 1)


def _self_attention(attention: Any, placed: Tensor, values: Tensor) -> Tensor:
    heads = attention.num_heads
    q, k, v = (
        layer(of).unflatten(-1, (heads, -1)).transpose(1, 2)
        for layer, of in ((attention.q_proj, placed), (attention.k_proj, placed), (attention.v_proj, values))
    )
    return attention.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _to_shared_image(cross: Cross, tokens: Tensor, side: ImageSide) -> Tensor:
    """Tokens look at an image that is the same for all points: `[P, T, C]`."""
    count, each, _ = tokens.shape
    q = _project(tokens, cross.token)  # [H, P * T, D]
    seen = torch.bmm(torch.bmm(q, side.keys).softmax(-1), side.values)
    return _out(cross, seen.transpose(0, 1)).view(count, each, -1)


def _to_image(cross: Cross, tokens: Tensor, x: Tensor, placed: Tensor) -> Tensor:
    """Tokens look at each point's own image `[P, L, C]`; `placed` is it with its positions. `[P, T, C]`."""
    count, each, _ = tokens.shape
    heads = len(cross.token[0])
    # The bias of the keys adds the same to all scores of a token, which softmax does not see.
    q = torch.bmm(_project(tokens, cross.token), cross.image[0])  # [H, P * T, C]
    q = q.view(heads, count, each, -1).transpose(0, 1).reshape(count, heads * each, -1)
    seen = torch.bmm(torch.bmm(q, placed.mT).softmax(-1), x)  # [P, H * T, C]
    assert cross.image_value is not None
    weight, bias = cross.image_value
    seen = seen.view(count, heads, each, -1).transpose(0, 1).reshape(heads, count * each, -1)
    seen = torch.baddbmm(bias[:, None], seen, weight.mT)  # [H, P * T, D]
    return _out(cross, seen.transpose(0, 1)).view(count, each, -1)


def _scores_of_shared_image(cross: Cross, tokens: Tensor, side: ImageSide) -> Tensor:
    """How much each position of the shared image looks at each token, `[P, H, T, L]`."""
    count, each, _ = tokens.shape
    scores = torch.bmm(_project(tokens, cross.token), side.queries)  # [H, P * T, L]
    return scores.view(len(scores), count, each, -1).transpose(0, 1).softmax(2)


def _scores_of_image(cross: Cross, tokens: Tensor, placed: Tensor) -> Tensor:
    """How much each position of each point's own image looks at each token, `[P, H, T, L]`."""
    count, each, _ = tokens.shape
    weight, bias = cross.image
    heads = len(weight)
    k = _project(tokens, cross.token)  # [H, P * T, D]
    constant = torch.bmm(k, bias[..., None])  # differs between tokens, so that softmax sees it
    k, constant = (
        part.view(heads, count, each, -1).transpose(0, 1).reshape(count, heads * each, -1)
        for part in (torch.bmm(k, weight), constant)
    )
    return torch.baddbmm(constant, k, placed.mT).view(count, heads, each, -1).softmax(2)


def _from_tokens(cross: Cross, scores: Tensor, tokens: Tensor, x: Tensor) -> Tensor:
    """Add to the image `[P, L, C]` what its positions see of the tokens."""
    count, heads, each, positions = scores.shape
    assert cross.token_value is not None
    weight, bias = cross.out
    # The shares that a position gives to the tokens sum to 1 in every head: a bias spread over heads arrives whole.
    values = torch.baddbmm(bias / heads, _project(tokens, cross.token_value), weight)  # [H, P * T, C]
    values = values.view(heads, count, each, -1).transpose(0, 1).reshape(count, heads * each, -1)
    return torch.baddbmm(x, scores.reshape(count, heads * each, positions).mT, values)


def _out(cross: Cross, seen: Tensor) -> Tensor:
    """`[N, H, D]` -> `[N, C]`."""
    weight, bias = cross.out
    return torch.addmm(bias, seen.flatten(1), weight.flatten(0, 1))
