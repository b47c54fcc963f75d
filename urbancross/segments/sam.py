"""Masks by SAM: those of segment-anything's `SamAutomaticMaskGenerator`, in a fraction of its time and memory.

A grid of points over the tile, three masks a point; those that the model finds good and whose outline is firm go
through non-maximum suppression of their boxes. With its own input size and in fp32 the masks are the same; `input_px`,
`precision` and fewer points trade some of that for time.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import nms

from urbancross import storage
from urbancross.config import SegmentConfig
from urbancross.errors import ConfigError, TileError
from urbancross.models import sam_decoder
from urbancross.models.sam import load, read, shape_of, variant_of, weights
from urbancross.models.sam_encoder import encode
from urbancross.segments.masks import Mask

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POINT_ELEMENTS = 1 << 22  # of the images that points have changed, at once on a CPU: what its cache holds
MASK_ELEMENTS = 1 << 20  # of masks as large as the model's input, at once on a CPU
MASK_ELEMENTS_CUDA = 1 << 26
SMALL_PX = 400  # up to this side, one product per axis is cheaper than a detour through the model's input size


@dataclass(frozen=True)
class Frame:
    """How a tile lies in the model's square input, in whose upper left corner it is put.

    Attributes:
        size: H, W of the tile.
        input_size: h, w of the tile as the model sees it.
        points: [N, 2] x, y in the model's input.
        rows: of the image embedding on which the tile's masks depend.
        columns: the same.
        down: [H, 4 * rows], brings a mask's rows to the tile's size; None for large tiles.
        across: [W, 4 * columns], the same for its columns.
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    points: Tensor
    rows: int
    columns: int
    down: Tensor | None
    across: Tensor | None


class SamMasks:
    """SAM ViT-B, L, H or any other size, on one device."""

    def __init__(
        self,
        checkpoint: str,
        sha256: str | None = None,
        device: str = "cpu",
        points_per_side: int = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        input_px: int | None = None,
        precision: str = "fp32",
        compile: bool = False,
        encoder_batch: int = 1,
    ) -> None:
        """Load the model.

        Args:
            checkpoint: path or URL of a .pth or .safetensors file.
            sha256: of that file, or how it begins.
            device: `cpu`, `cuda`, `cuda:1` ...
            points_per_side: of the grid over a tile.
            points_per_batch: points that a GPU decodes at once; a CPU takes what fits its cache, never more.
            pred_iou_thresh: a mask that the model finds worse is dropped.
            stability_score_thresh: a mask that changes more with the threshold is dropped.
            stability_score_offset: by how much the threshold is moved for that, in logits.
            box_nms_thresh: of two masks whose boxes overlap by a larger IoU the worse is dropped.
            input_px: side of the model's input; None for its own. Smaller is faster, and other masks.
            precision: `fp32`, `bf16` or `fp16` for the network; outlines are found in fp32.
            compile: let torch.compile rewrite the encoder; the first tile takes long.
            encoder_batch: tiles that the encoder takes at once.
        """
        if precision not in DTYPES:
            raise ConfigError(f"--precision {precision}: one of {', '.join(DTYPES)} is wanted")
        for flag, value in (
            ("--points-per-side", points_per_side),
            ("--points-per-batch", points_per_batch),
            ("--encoder-batch", encoder_batch),
        ):
            if value < 1:
                raise ConfigError(f"{flag} {value}: 1 or more is wanted")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"--device {device}: no GPU in this process; leave it out, or give --gpus-per-worker 1")
        self.device, self.dtype = torch.device(device), DTYPES[precision]
        self.model = load(weights(checkpoint, sha256), input_px).to(self.device)
        self.model.image_encoder.to(self.dtype)
        self.model.mask_decoder.to(self.dtype)
        self.side = self.model.image_encoder.img_size
        self.grid = self.model.prompt_encoder.image_embedding_size
        self.decoder = sam_decoder.fold(self.model, self.grid)
        self.encode = torch.compile(encode) if compile else encode
        self.points_per_side, self.points_per_batch = points_per_side, points_per_batch
        self.pred_iou_thresh, self.stability_score_thresh = pred_iou_thresh, stability_score_thresh
        self.stability_score_offset, self.box_nms_thresh = stability_score_offset, box_nms_thresh
        self.encoder_batch = encoder_batch
        self.frame = functools.lru_cache(maxsize=32)(self._frame)

    def masks(self, tiles: Iterable[np.ndarray]) -> Iterator[list[Mask]]:
        """Masks of each tile, the best predicted IoU first."""
        waiting = iter(tiles)
        while batch := list(islice(waiting, self.encoder_batch)):
            embeddings = self.embed(batch)
            for tile, embedding in zip(batch, embeddings, strict=True):
                frame = self.frame(tile.shape[:2])
                found = [mask for good in self.propose(embedding, frame) for mask in self.firm(*good, frame)]
                yield self.distinct(found)

    @torch.inference_mode()
    def embed(self, tiles: list[np.ndarray]) -> Tensor:
        """Tiles `[H, W, 3]` of any sizes -> `[B, C, h, w]`."""
        images = torch.zeros(len(tiles), 3, self.side, self.side, device=self.device)
        for image, tile in zip(images, tiles, strict=True):
            h, w = self.frame(tile.shape[:2]).input_size
            pixels = np.asarray(Image.fromarray(tile).resize((w, h), Image.Resampling.BILINEAR))
            placed = torch.from_numpy(pixels.copy()).to(self.device).permute(2, 0, 1)
            image[:, :h, :w] = (placed - self.model.pixel_mean) / self.model.pixel_std
        return self.encode(self.model.image_encoder, images.to(self.dtype))

    def propose(self, embedding: Tensor, frame: Frame) -> Iterator[tuple[Tensor, Tensor]]:
        """The masks that the model finds good, some at a time: predicted IoU `[N]`, logits `[N, h, w]`."""
        with torch.inference_mode():
            side = sam_decoder.image_side(self.decoder, embedding)
        at_once = self.points_per_batch
        if self.device.type == "cpu":
            at_once = min(at_once, max(1, POINT_ELEMENTS // side.x.numel()))
        for part in sam_decoder.in_chunks(len(frame.points), at_once):
            found = self._propose(side, frame, part)
            if found is not None:
                yield found

    @torch.inference_mode()
    def _propose(self, side: sam_decoder.ImageSide, frame: Frame, part: slice) -> tuple[Tensor, Tensor] | None:
        tokens = sam_decoder.point_tokens(self.decoder, frame.points[part])
        ious, drawing, x = sam_decoder.attend(self.decoder, side, tokens)
        good = ious > self.pred_iou_thresh if self.pred_iou_thresh > 0 else torch.ones_like(ious, dtype=torch.bool)
        wanted = good.any(dim=1)
        if not wanted.any():
            return None
        if not wanted.all():
            drawing, x, ious, good = drawing[wanted], x[wanted], ious[wanted], good[wanted]
        return ious[good], sam_decoder.draw(self.decoder, drawing, x, frame.rows, frame.columns)[good]

    @torch.inference_mode()
    def firm(self, ious: Tensor, logits: Tensor, frame: Frame) -> list[Mask]:
        """Those of the masks whose outline is firm, over the tile."""
        budget = MASK_ELEMENTS_CUDA if logits.is_cuda else MASK_ELEMENTS
        found = []
        for part in sam_decoder.in_chunks(len(logits), max(1, budget // self.side**2)):
            pixels = self._over_tile(logits[part], frame)  # [N, W, H]: run-length code goes down the columns
            threshold, offset = self.model.mask_threshold, self.stability_score_offset
            inner, outer = ((pixels > threshold + by).flatten(1).sum(1, dtype=torch.int32) for by in (offset, -offset))
            stability = inner / outer  # one lies within the other
            if self.stability_score_thresh > 0:
                keep = stability >= self.stability_score_thresh
                pixels, stability, told = pixels[keep], stability[keep], ious[part][keep]
            else:
                told = ious[part]
            over = (pixels > threshold).cpu().numpy().view(np.uint8)
            for mask, firmness, iou in zip(over, stability.tolist(), told.tolist(), strict=True):
                found.append(Mask.of(mask.T, firmness, iou))
        return found

    def _over_tile(self, logits: Tensor, frame: Frame) -> Tensor:
        """`[N, 4 * rows, 4 * columns]` -> `[N, W, H]` float32."""
        turned = logits.float().mT
        if frame.down is not None and frame.across is not None:
            return torch.matmul(torch.matmul(frame.across, turned), frame.down.T)
        (h, w), patch = frame.input_size, self.side // self.grid[0]
        size = (frame.columns * patch, frame.rows * patch)
        pixels = F.interpolate(turned[None], size, mode="bilinear", align_corners=False)[..., :w, :h]
        if frame.input_size != frame.size:
            pixels = F.interpolate(pixels, frame.size[::-1], mode="bilinear", align_corners=False)
        return pixels[0]

    def distinct(self, masks: list[Mask]) -> list[Mask]:
        """Drop those whose box a better mask has, the best first."""
        if not masks:
            return []
        boxes = torch.tensor([mask.box for mask in masks], dtype=torch.float32)
        boxes[:, 2:] -= torch.tensor([[float(mask.area > 0)] for mask in masks])  # to the last pixel, not beyond
        scores = torch.tensor([mask.predicted_iou for mask in masks])
        return [masks[i] for i in nms(boxes, scores, self.box_nms_thresh).tolist()]

    def _frame(self, size: tuple[int, int]) -> Frame:
        scale = self.side / max(size)
        input_h, input_w = (int(edge * scale + 0.5) for edge in size)
        if not input_h or not input_w:
            raise TileError(f"a tile of {size[1]} x {size[0]} px is too narrow for an input of {self.side} px")
        steps = np.linspace(1 / (2 * self.points_per_side), 1 - 1 / (2 * self.points_per_side), self.points_per_side)
        x, y = np.meshgrid(steps * size[1] * (input_w / size[1]), steps * size[0] * (input_h / size[0]))
        patch = self.side // self.grid[0]
        # A pixel of a mask depends on the next one, hence one quarter of a patch more.
        rows, columns = (min(self.grid[0], (edge + patch // 4) // patch + 1) for edge in (input_h, input_w))
        small = max(size) <= SMALL_PX
        return Frame(
            size=size,
            input_size=(input_h, input_w),
            points=torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=-1)).to(self.device),
            rows=rows,
            columns=columns,
            down=self._axis(size[0], input_h, rows) if small else None,
            across=self._axis(size[1], input_w, columns) if small else None,
        )

    def _axis(self, pixels: int, input_pixels: int, patches: int) -> Tensor:
        """Both resizings of a mask along one axis, to the model's input and to the tile, as `[pixels, 4 * patches]`."""
        each = torch.eye(4 * self.grid[0])[None]  # a mask for each of its own rows
        whole = F.interpolate(each, self.side, mode="linear")[..., :input_pixels]
        return F.interpolate(whole, pixels, mode="linear")[0, : 4 * patches].T.contiguous().to(self.device)


def made_by(config: SegmentConfig, checkpoint: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The variant's name, the settings that change masks, and what `SamMasks` is built from.

    Raises:
        ConfigError: the weights are not there, or a URL without digest.
        CheckpointError: they are not those of a SAM, or not those of the digest.
    """
    file = weights(checkpoint, config.sha256)
    load(file, config.input_px)  # whatever is wrong with it is said before any worker starts
    shape, fast = shape_of(read(file)), config.mode == "fast"
    half = shape.img_size // 2 // shape.patch_size * shape.patch_size
    input_px = config.input_px or (half if fast else shape.img_size)
    settings = {
        "points_per_side": config.points_per_side or (16 if fast else 32),
        "input_px": None if input_px == shape.img_size else input_px,
        "precision": config.precision or ("bf16" if fast and computes_in_bf16(config.device) else "fp32"),
        **config.model_dump(include={"pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"}),
    }
    digest = storage.digest(file)
    work = config.model_dump(include={"points_per_batch", "encoder_batch", "compile", "device"})
    source = checkpoint if "://" in checkpoint else str(file.absolute())  # workers stand in other folders
    return (
        variant_of(shape),
        {"weights": digest, **settings},
        {"checkpoint": source, "sha256": digest, **settings, **work},
    )


def computes_in_bf16(device: str) -> bool:
    """Whether bf16 is faster there than fp32; a CPU without instructions for it emulates it."""
    return device == "cuda" or any(torch.cpu.get_capabilities().get(kind) for kind in ("avx512_bf16", "amx_bf16"))
