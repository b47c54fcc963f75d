"""Tiles, captions and segments as pairs to learn from: frozen features in memory, images where a tower learns.

N = tiles, M = captions, K = segment slots, F = a tower's feature width.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from urbancross.errors import ConfigError
from urbancross.models.dual_encoder import square
from urbancross.resuming import drawn
from urbancross.tiles import decode


@dataclass(frozen=True)
class Batch:
    """B tiles with C of their captions each.

    Attributes:
        rows: [B] the tiles, as rows of `Pairs`.
        captions: [B, C] the captions of each, as rows of `Pairs.texts`.
    """

    rows: Tensor
    captions: Tensor

    def part(self, rank: int, world: int) -> "Batch":
        """What process `rank` of `world` works on: equal parts, in order; a remainder that cannot be shared is cut."""
        size = len(self.rows) // world
        return Batch(self.rows[rank * size : (rank + 1) * size], self.captions[rank * size : (rank + 1) * size])


@dataclass(frozen=True)
class Pairs:
    """All pairs of one split.

    Attributes:
        images: [N, F] features of the tiles.
        texts: [M, F] features of the captions; those of tile i are rows `starts[i]` to `starts[i + 1]`.
        text_keys: [M] equal for equal texts.
        segments: [N, K, F] features of segments; absent ones are zero.
        present: [N, K] bool.
        encoded: the images as bytes, where a tower learns.
    """

    images: Tensor
    texts: Tensor
    starts: Tensor
    text_keys: Tensor
    segments: Tensor
    present: Tensor
    encoded: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def choose(self, rows: Tensor, generator: torch.Generator, captions: int = 1) -> Batch:
        """So many captions for each of `rows`: from a random one on, and round again where a tile has fewer."""
        first, count = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        share = torch.rand(len(rows), generator=generator)
        start = (share * count).long().clamp(max=count - 1)
        return Batch(rows, first[:, None] + (start[:, None] + torch.arange(captions)) % count[:, None])

    def distinct_texts(self) -> tuple[Tensor, Tensor]:
        """A row of `texts` for each distinct text, and its share of all captions: [D] int64, [D]."""
        keys, nth, counts = torch.unique(self.text_keys, return_inverse=True, return_counts=True)
        rows = torch.full((len(keys),), len(nth)).scatter_reduce(0, nth, torch.arange(len(nth)), "amin")
        return rows, counts / counts.sum()

    def batches(self, size: int, first: int, steps: int, seed: int, captions: int = 1) -> Iterator[Batch]:
        """The batches of steps `first` to `steps`, counted from 1.

        Every tile comes once an epoch, in an order that seed and epoch decide; a last, short batch is left out.
        """
        a_pass, size = self.steps_per_epoch(size), min(size, len(self))
        order = torch.empty(0)
        for step in range(first, steps + 1):
            epoch, nth = divmod(step - 1, a_pass)
            if nth == 0 or step == first:
                order = torch.randperm(len(self), generator=drawn(seed, "order", epoch))
            yield self.choose(order[nth * size : (nth + 1) * size], drawn(seed, "captions", step), captions)

    def steps_per_epoch(self, size: int) -> int:
        return max(len(self) // size, 1)

    def pixels(self, rows: Tensor, image_px: int, crop_px: int, generator: torch.Generator) -> Tensor:
        """Random crops of the tiles in one of the eight rotations and flips: `[B, 3, crop, crop]` uint8."""
        assert self.encoded is not None
        crop_px = min(crop_px, image_px)
        offsets = torch.randint(0, image_px - crop_px + 1, (len(rows), 2), generator=generator).tolist()
        turn, flip = (
            int(torch.randint(0, 4, (), generator=generator)),
            bool(torch.randint(0, 2, (), generator=generator)),
        )
        crops = [
            square(decode(self.encoded[row]), image_px)[y : y + crop_px, x : x + crop_px]
            for row, (y, x) in zip(rows.tolist(), offsets, strict=True)
        ]
        pixels = torch.rot90(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), turn, (2, 3))
        return pixels.flip(3) if flip else pixels


def text_key(text: str) -> int:
    """A 63-bit key, equal for texts that differ in case and spacing alone."""
    plain = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "big") >> 1


def gather_pairs(shards: Iterable[dict[str, pa.Table]], split: str, max_segments: int, images: bool) -> Pairs:
    """Read the pairs of a split from aligned shards of `tiles`, `captions` and `features`.

    Args:
        max_segments: K; 0 leaves segments out.
        images: keep the encoded images too.

    Raises:
        ConfigError: no tile of that split has a caption.
    """
    features, texts, keys, counts, segments, encoded = [], [], [], [], [], []
    for tables in shards:
        told = tables["features"]
        use = np.array([s == split for s in tables["tiles"]["split"].to_pylist()], dtype=bool)
        use &= np.array([failure is None for failure in told["failure"].to_pylist()], dtype=bool)
        rows = pa.array(np.flatnonzero(use))
        if not len(rows):
            continue
        told = told.take(rows)
        captions = tables["captions"].take(rows)["captions"].to_pylist()
        features.append(_matrix(told["image"]))
        texts.append(_matrix(told["texts"]))
        keys += [text_key(text) for lines in captions for text in lines]
        counts += [len(lines) for lines in captions]
        segments += (
            [row[:max_segments] if row else [] for row in told["segments"].to_pylist()]
            if max_segments
            else [[]] * len(rows)
        )
        if images:
            encoded += tables["tiles"].take(rows)["image"].to_pylist()
    if not features:
        raise ConfigError(f"no tile of split {split} has a caption; choose another with --split")
    image = torch.from_numpy(np.concatenate(features))
    slots = torch.zeros(len(image), max_segments, image.shape[1])
    present = torch.zeros(len(image), max_segments, dtype=torch.bool)
    for i, found in enumerate(segments):
        if found:
            slots[i, : len(found)] = torch.tensor(np.asarray(found, dtype=np.float32))
            present[i, : len(found)] = True
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
    return Pairs(
        image,
        torch.from_numpy(np.concatenate(texts)),
        starts,
        torch.tensor(keys),
        slots,
        present,
        encoded if images else None,
    )


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of (lists of) vectors as `[rows, F]` float32."""
    values = column.combine_chunks()
    width = None
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size if pa.types.is_fixed_size_list(values.type) else None
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(-1, width or 1).copy()
