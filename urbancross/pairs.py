"""Tiles, captions and segments as pairs to learn from: frozen features in memory, images where a tower learns.

N = tiles, M = captions, K = segment slots, F = a tower's feature width.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from urbancross.errors import ConfigError
from urbancross.models.dual_encoder import square, turned
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
class Plan:
    """How a stage of training goes through its pairs.

    Attributes:
        size: B, pairs a step over all processes.
        seed: decides order, captions and crops.
        captions: C, captions of each tile.
        image_px, crop_px: side of tiles, and of the random crops that a tower sees; None where it is frozen.
        crop_scale: least share of a tile's area that a crop shows, sized to `crop_px`; None: crops keep their scale.
        tokenizer: of a text tower that learns; None where it is frozen.
    """

    size: int
    seed: int
    captions: int = 1
    image_px: int = 0
    crop_px: int | None = None
    crop_scale: float | None = None
    tokenizer: Callable[[list[str]], Tensor] | None = None


@dataclass(frozen=True)
class Step:
    """What a process sees of one step: names of all B pairs, and the contents of its own b = B / W.

    Attributes:
        tile_keys: [B] equal for equal tiles.
        text_keys: [B, C] equal for equal texts.
        has_segment: [B] bool.
        images: [b, F] features, or [b, 3, crop, crop] uint8 where a tower learns.
        texts: [b, C, F] features, or [b, C, L] int64 tokens where a tower learns.
        segments: [b, K, F] features; absent ones are zero.
        present: [b, K] bool.
    """

    tile_keys: Tensor
    text_keys: Tensor
    has_segment: Tensor
    images: Tensor
    texts: Tensor
    segments: Tensor
    present: Tensor

    def take(self, rows: Tensor) -> "Step":
        """Some pairs of a step that one process sees whole."""
        return Step(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def part(self, rank: int, world: int) -> "Step":
        """What process `rank` of `world` sees of a step that divides among them; names stay those of all pairs."""
        mine = ("images", "texts", "segments", "present")
        return replace(self, **{name: getattr(self, name).chunk(world)[rank] for name in mine})


class Feed(Protocol):
    """Where training takes its steps from; `Pairs` in memory is one."""

    @property
    def tiles(self) -> int:
        """How many there are; `Step.tile_keys` are less than this."""
        ...

    @property
    def with_segments(self) -> bool:
        """Whether any tile has one."""
        ...

    def steps_per_epoch(self, size: int) -> int: ...

    def steps(self, plan: Plan, first: int, last: int, rank: int, world: int) -> Iterator[Step]: ...


@dataclass(frozen=True)
class Pairs:
    """All pairs of one split.

    Attributes:
        images: [N, F] features of the tiles.
        texts: [M, F] features of the captions; those of tile i are rows `starts[i]` to `starts[i + 1]`.
        text_keys: [M] equal for equal texts.
        segments: [N, K, F] features of segments; absent ones are zero.
        present: [N, K] bool.
        encoded: the images as bytes, where their tower learns.
        written: the captions, where theirs learns.
    """

    images: Tensor
    texts: Tensor
    starts: Tensor
    text_keys: Tensor
    segments: Tensor
    present: Tensor
    encoded: list[bytes] | None = None
    written: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def choose(self, rows: Tensor, generator: torch.Generator, captions: int = 1) -> Batch:
        """So many captions for each of `rows`: from a random one on, and round again where a tile has fewer."""
        first, count = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        share = torch.rand(len(rows), generator=generator)
        start = (share * count).long().clamp(max=count - 1)
        return Batch(rows, first[:, None] + (start[:, None] + torch.arange(captions)) % count[:, None])

    def sample(self, count: int, *place: str | int) -> tuple[Tensor, Tensor]:
        """Rows of up to `count` tiles and of up to `count` captions, whoever's they are: `[n]` and `[m]` int64.

        Args:
            place: decides which; see `resuming.drawn`.
        """
        generator = drawn("sample", *place)
        tiles, texts = (torch.randperm(len(rows), generator=generator)[:count] for rows in (self.images, self.texts))
        return tiles, texts

    def distinct_texts(self) -> tuple[Tensor, Tensor]:
        """A row of `texts` for each distinct text, and its share of all captions: [D] int64, [D]."""
        keys, nth, counts = torch.unique(self.text_keys, return_inverse=True, return_counts=True)
        rows = torch.full((len(keys),), len(nth)).scatter_reduce(0, nth, torch.arange(len(nth)), "amin")
        return rows, counts / counts.sum()

    @property
    def tiles(self) -> int:
        return len(self)

    @property
    def with_segments(self) -> bool:
        return bool(self.present.any())

    def steps_per_epoch(self, size: int) -> int:
        return max(len(self) // size, 1)

    def steps(self, plan: Plan, first: int, last: int, rank: int, world: int) -> Iterator[Step]:
        """What process `rank` of `world` sees of the steps `first` to `last`, counted from 1."""
        a_pass = self.steps_per_epoch(plan.size)
        for number in range(first, last + 1):
            epoch, nth = divmod(number - 1, a_pass)
            yield self.step(plan, number, (epoch, 0), nth, rank, world)

    def step(self, plan: Plan, number: int, order: tuple[int, int], nth: int, rank: int, world: int) -> Step:
        """One step's part, wherever training stands.

        Every tile comes once a pass; a last, short batch is left out.

        Args:
            number: of the step, which decides captions and crops.
            order: of the tiles: which pass, and over which window of the archive.
            nth: batch of that order, from 0.
        """
        size = min(plan.size, len(self))
        rows = _order(len(self), plan.seed, *order)[nth * size : (nth + 1) * size]
        batch = self.choose(rows, drawn(plan.seed, "captions", number), plan.captions)
        part = batch.part(rank, world)
        tiles, captions = batch.rows[: len(part.rows) * world], batch.captions[: len(part.rows) * world]
        crops = drawn(plan.seed, "crops", number, rank)
        return Step(
            tile_keys=tiles,
            text_keys=self.text_keys[captions],
            has_segment=self.present[tiles].any(dim=1),
            images=self.images[part.rows]
            if plan.crop_px is None
            else self.pixels(part.rows, plan.image_px, plan.crop_px, crops, plan.crop_scale),
            texts=self.texts[part.captions] if plan.tokenizer is None else self.tokens(part.captions, plan.tokenizer),
            segments=self.segments[part.rows],
            present=self.present[part.rows],
        )

    def tokens(self, captions: Tensor, tokenizer: Callable[[list[str]], Tensor]) -> Tensor:
        """Captions [B, C] as a tower reads them: `[B, C, L]` int64."""
        assert self.written is not None
        return tokenizer([self.written[row] for row in captions.flatten().tolist()]).unflatten(0, captions.shape)

    def pixels(
        self, rows: Tensor, image_px: int, crop_px: int, generator: torch.Generator, scale: float | None = None
    ) -> Tensor:
        """Random crops of the tiles in one of the eight turns and flips: `[B, 3, crop, crop]` uint8.

        Args:
            scale: least share of a tile's area that a crop shows, sized to `crop_px`; None: crops keep their scale.
        """
        assert self.encoded is not None
        crop_px = min(crop_px, image_px)
        sides = torch.full((len(rows),), crop_px)
        if scale is not None:
            shares = scale + (1 - scale) * torch.rand(len(rows), generator=generator)
            sides = (image_px * shares.sqrt()).round().long().clamp(min=1)
        offsets = (torch.rand(len(rows), 2, generator=generator) * (image_px - sides[:, None] + 1)).long().tolist()
        nth = int(torch.randint(0, 8, (), generator=generator))
        crops = [
            square(square(decode(self.encoded[row]), image_px)[y : y + side, x : x + side], crop_px)
            for row, side, (y, x) in zip(rows.tolist(), sides.tolist(), offsets, strict=True)
        ]
        return turned(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), nth)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int, window: int) -> Tensor:
    return torch.randperm(count, generator=drawn(seed, "order", epoch, window))


def text_key(text: str) -> int:
    """A 63-bit key, equal for texts that differ in case and spacing alone."""
    plain = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "big") >> 1


def gather_pairs(
    shards: Iterable[dict[str, pa.Table]], split: str, max_segments: int, images: bool = False, written: bool = False
) -> Pairs:
    """Read the pairs of a split from aligned shards of `tiles`, `captions` and `features`.

    Args:
        max_segments: K; 0 leaves segments out.
        images: keep the encoded images too.
        written: keep the captions too.

    Raises:
        ConfigError: no tile of that split has a caption.
    """
    features, texts, keys, counts, segments = [], [], [], [], []
    encoded: list[bytes] = []
    lines: list[str] = []
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
        keys += [text_key(text) for texts_of_tile in captions for text in texts_of_tile]
        counts += [len(texts_of_tile) for texts_of_tile in captions]
        if written:
            lines += [text for texts_of_tile in captions for text in texts_of_tile]
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
        lines if written else None,
    )


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of (lists of) vectors as `[rows, F]` float32."""
    values = column.combine_chunks()
    width = None
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size if pa.types.is_fixed_size_list(values.type) else None
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(-1, width or 1).copy()
