"""A small SAM from segment-anything's own classes, trained for a minute on drawn scenes, so that its masks are masks.

    python tests/small_sam.py FILE

Its encoder has windowed and global blocks and windows that need padding, as the large ones have.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from segment_anything.modeling import Sam

from urbancross.models.sam import Shape, build

SHAPE = Shape(
    embed_dim=64,
    depth=4,
    heads=4,
    img_size=256,
    patch_size=16,
    window_size=6,
    global_blocks=(1, 3),
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
# Sizes for which the small model finds a sensible share of masks good.
THRESHOLDS = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}


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
    for number in range(1, rng.integers(4, 9)):
        x, y = rng.uniform(0.1, 0.9, 2) * (w, h)
        a, b = rng.uniform(0.08, 0.25, 2) * side
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


def train(file: Path, steps: int = 260, batch: int = 6, points: int = 10, seed: int = 0) -> Path:
    """Train on drawn scenes and save; the same seed gives the same weights on the same machine."""
    sam = random_sam(seed=seed).requires_grad_(True).train()
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    side = SHAPE.img_size
    for step in range(steps):
        scenes = [scene(10_000 + seed * 1_000_000 + step * batch + i, side, side) for i in range(batch)]
        images = torch.from_numpy(np.stack([tile for tile, _ in scenes])).permute(0, 3, 1, 2).float()
        embeddings = sam.image_encoder(sam.preprocess(images))
        loss = torch.zeros(())
        for embedding, (_, numbers) in zip(embeddings, scenes, strict=True):
            shapes = np.unique(numbers)
            places = [np.argwhere(numbers == shape) for shape in rng.choice(shapes, points)]
            at = np.stack([place[rng.integers(len(place))] for place in places])  # y, x
            wanted = torch.from_numpy(np.stack([numbers == numbers[y, x] for y, x in at])).float()[:, None]
            loss = loss + point_loss(sam, embedding, torch.from_numpy(at[:, ::-1].copy()).float(), wanted)
        optimizer.zero_grad()
        (loss / batch).backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.save(sam.state_dict(), file)
    return Path(file)


def point_loss(sam: Sam, embedding: torch.Tensor, points: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of one image's points `[P, 2]`, whose masks `[P, 1, side, side]` are known: the best of three masks counts."""
    sparse, dense = sam.prompt_encoder(points=(points[:, None], torch.ones(len(points), 1)), boxes=None, masks=None)
    place = sam.prompt_encoder.get_dense_pe()
    logits, told = sam.mask_decoder(embedding[None], place, sparse, dense, True)  # [P, 3, side / 4, side / 4], [P, 3]
    small = F.interpolate(wanted, logits.shape[-2:], mode="area").expand_as(logits)
    share = logits.sigmoid()
    dice = 1 - (2 * (share * small).sum((2, 3)) + 1) / (share.sum((2, 3)) + small.sum((2, 3)) + 1)
    cross = F.binary_cross_entropy_with_logits(logits, small, reduction="none").mean((2, 3))
    found, there = logits > 0, small > 0.5
    iou = (found & there).sum((2, 3)) / (found | there).sum((2, 3)).clamp(min=1)
    return (dice + 5 * cross).min(dim=1).values.mean() + F.mse_loss(told, iou.float())


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
