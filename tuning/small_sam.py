"""A small SAM from segment-anything's own classes, trained for a minute on drawn scenes, so that its masks are masks.

    python tuning/small_sam.py FILE

Its encoder has windowed and global blocks and windows that need padding, as the large ones have.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from segment_anything.modeling import Sam
from torch import Tensor, nn

from urbancross.models.sam import Shape, build

SHAPE = Shape(
    embed_dim=64,
    depth=2,
    heads=4,
    img_size=128,
    patch_size=8,
    window_size=6,
    global_blocks=(1,),
    mlp_ratio=2.0,
    qkv_bias=True,
    prompt_dim=64,
    mask_in_chans=16,
    multimask_outputs=3,
    decoder_depth=2,
    decoder_mlp_dim=128,
    decoder_downsample=2,
    iou_depth=3,
    iou_hidden=64,
)
DEEPER = replace(SHAPE, depth=4, global_blocks=(1, 3), img_size=256, patch_size=16)  # for random weights
THRESHOLDS = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.6}  # the trained one thinks little of itself


def random_sam(shape: Shape = SHAPE, seed: int = 0) -> Sam:
    """A SAM of random weights in which nothing is zero that a trained one has."""
    torch.manual_seed(seed)
    sam = build(shape)
    for name, weight in sam.named_parameters():
        if "rel_pos" in name or "pos_embed" in name or name.endswith("bias"):
            weight.normal_(0, 0.1)
        elif weight.dim() == 1:
            weight.add_(torch.randn_like(weight) * 0.1)
    return sam


def scene(seed: int, h: int = 256, w: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Shapes of one colour each on noisy ground: `[h, w, 3]` uint8, and `[h, w]` with the number of the shape there."""
    rng = np.random.default_rng(seed)
    side = min(h, w)
    colours = Image.new("RGB", (w, h), tuple(rng.integers(60, 140, 3).tolist()))
    numbers = Image.new("L", (w, h))
    for number in range(1, rng.integers(3, 6)):
        x, y = rng.uniform(0.1, 0.9, 2) * (w, h)
        a, b = rng.uniform(0.14, 0.32, 2) * side
        kind = rng.integers(3)
        corners = [(x + a * np.cos(t), y + b * np.sin(t)) for t in np.sort(rng.uniform(0, 2 * np.pi, 5))]
        for picture, ink in ((colours, tuple(rng.integers(0, 256, 3).tolist())), (numbers, number)):
            draw = ImageDraw.Draw(picture)
            if kind == 0:
                draw.rectangle((x - a, y - b, x + a, y + b), fill=ink)
            elif kind == 1:
                draw.ellipse((x - a, y - b, x + a, y + b), fill=ink)
            else:
                draw.polygon(corners, fill=ink)
    ground = np.kron(rng.normal(0, 8, (-(-h // 8), -(-w // 8), 1)), np.ones((8, 8, 1)))[:h, :w]
    tile = np.asarray(colours) + ground + rng.normal(0, 6, (h, w, 3))
    return np.clip(tile, 0, 255).astype(np.uint8), np.asarray(numbers)


def train(
    file: Path,
    steps: int = 480,
    batch: int = 2,
    points: int = 8,
    seed: int = 0,
    shape: Shape = SHAPE,
    draw: Callable[[int, int, int], tuple[np.ndarray, np.ndarray]] = scene,
) -> Path:
    """Train on drawn scenes and save; the same seed gives the same weights on the same machine.

    Args:
        draw: seed, height and width to a tile and the number of the shape at each of its pixels, as `scene` gives them.
    """
    torch.manual_seed(seed)
    sam = build(shape).requires_grad_(True).train()
    make_tokens_look_where_the_point_is(sam)
    # Two more tasks, dropped afterwards, teach it in a minute what masks alone would in an hour: colours from the
    # features that a mask is drawn with, and from the tokens the colour at the point.
    width = shape.prompt_dim
    colours = nn.ModuleList([nn.Linear(width // 8, 3), nn.Linear(width, 3)])
    seen: dict[str, Tensor] = {}
    hook = sam.mask_decoder.transformer.register_forward_hook(lambda *call: seen.update(tokens=call[-1][0][:, 1:]))
    rng = np.random.default_rng(seed)
    weights = [*sam.parameters(), *colours.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1.5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.15)
    side = shape.img_size
    for step in range(steps):
        scenes = [draw(10_000 + seed * 1_000_000 + step * batch + i, side, side) for i in range(batch)]
        images = sam.preprocess(torch.from_numpy(np.stack([tile for tile, _ in scenes])).permute(0, 3, 1, 2).float())
        embeddings = sam.image_encoder(images)
        fine = sam.mask_decoder.output_upscaling(embeddings).permute(0, 2, 3, 1)  # [B, h, w, width // 8]
        small = F.interpolate(images, fine.shape[1:3], mode="area").permute(0, 2, 3, 1)
        loss = batch * F.mse_loss(colours[0](fine), small)
        for embedding, (_, numbers), picture in zip(embeddings, scenes, small, strict=True):
            places = [np.argwhere(numbers == number) for number in rng.choice(np.unique(numbers), points)]
            at = np.stack([place[rng.integers(len(place))] for place in places])  # y, x
            wanted = torch.from_numpy(np.stack([numbers == numbers[y, x] for y, x in at])).float()[:, None]
            loss = loss + point_loss(sam, embedding, torch.from_numpy(at[:, ::-1].copy()).float(), wanted)
            y, x = torch.from_numpy(at * len(picture) // side).T
            loss = loss + F.mse_loss(colours[1](seen["tokens"].mean(1)), picture[y, x])
        optimizer.zero_grad()
        (loss / batch).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    hook.remove()
    torch.save(sam.state_dict(), file)
    return Path(file)


def make_tokens_look_where_the_point_is(sam: Sam) -> None:
    """Start with equal projections of queries and keys, and values that come back as they went in."""
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    layers = decoder.transformer.layers
    shared = [decoder.iou_token, decoder.mask_tokens, prompts.not_a_point_embed, *prompts.point_embeddings]
    with torch.no_grad():
        for token in shared:
            token.weight.mul_(0.2)  # the point's place is the louder part
        prompts.no_mask_embed.weight.zero_()
        sam.image_encoder.neck[3].weight.fill_(0.3)
        looking = [
            decoder.transformer.final_attn_token_to_image,
            *(layer.cross_attn_token_to_image for layer in layers),
        ]
        for attention in [*looking, *(layer.self_attn for layer in layers)]:
            nn.init.orthogonal_(attention.v_proj.weight)
            attention.out_proj.weight.copy_(attention.v_proj.weight.T)
        for attention in looking:
            nn.init.orthogonal_(attention.k_proj.weight, gain=10**0.5)
            attention.q_proj.weight.copy_(attention.k_proj.weight)


def point_loss(sam: Sam, embedding: Tensor, points: Tensor, wanted: Tensor) -> Tensor:
    """Of one image's points `[P, 2]`, whose masks `[P, 1, side, side]` are known: the best of three masks counts."""
    sparse, dense = sam.prompt_encoder(points=(points[:, None], torch.ones(len(points), 1)), boxes=None, masks=None)
    place = sam.prompt_encoder.get_dense_pe()
    logits, told = sam.mask_decoder(embedding[None], place, sparse, dense, True)  # [P, 3, side / 2, side / 2], [P, 3]
    inside = F.interpolate(wanted, logits.shape[-2:], mode="area").expand_as(logits)
    share = logits.sigmoid()
    dice = 1 - (2 * (share * inside).sum((2, 3)) + 1) / (share.sum((2, 3)) + inside.sum((2, 3)) + 1)
    wrong = F.binary_cross_entropy_with_logits(logits, inside, reduction="none")
    outside = 1 - inside
    balanced = sum((wrong * part).sum((2, 3)) / part.sum((2, 3)).clamp(min=1) for part in (inside, outside))
    found, there = logits > 0, inside > 0.5
    iou = (found & there).sum((2, 3)) / (found | there).sum((2, 3)).clamp(min=1)
    return (dice + balanced).min(dim=1).values.mean() + F.mse_loss(told, iou.float())


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
