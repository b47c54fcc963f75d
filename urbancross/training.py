"""Pretraining on tensors: one process of a team, any device, nothing of Ray.

Every process holds the same order of pairs, works on its part of each batch, and sees the whole batch's embeddings
through `Team.gather`, whose gradient flows back to the process that made them. With gradients averaged over the team,
W processes with B/W pairs each take the same steps as one with B.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from urbancross import losses
from urbancross.config import PretrainConfig
from urbancross.errors import TrainingError
from urbancross.models.dual_encoder import DualEncoder, square
from urbancross.pairs import Feed, Pairs, Plan, Step
from urbancross.resuming import Memory, Moving, drawn
from urbancross.tiles import decode

Event = dict[str, Any]


@dataclass(frozen=True)
class Team:
    """The processes that train together.

    Attributes:
        gather: [B/W, ...] of this process to [B, ...] of all, in order of rank, with gradient.
        average: replaces gradients of parameters by their mean over the team.
    """

    rank: int = 0
    world: int = 1
    gather: Callable[[Tensor], Tensor] = lambda part: part
    average: Callable[[list[nn.Parameter]], None] = lambda parameters: None


ALONE = Team()
FORGETFUL = Memory()


def pretrain(
    encoder: DualEncoder,
    feed: Feed,
    config: PretrainConfig,
    team: Team,
    on_step: Callable[[Event], None],
    memory: Memory = FORGETFUL,
) -> None:
    """Learn by contrast, L = L(V, U) + segment_weight * L(Z, U) (UrbanCross, arXiv 2404.14241): heads, then tower."""
    require_shares(feed.tiles, "pairs to learn from", team)
    require_shares(config.head_batch, "--head-batch", team)
    if config.train != "heads":
        require_shares(config.image_batch, "--image-batch", team)
    heads = nn.ModuleList([encoder.heads["image"], encoder.heads["text"]])
    if feed.with_segments and config.segment_encoder == "separate":
        heads.append(encoder.heads["segment"])
    sees_segments = ("image" if config.segment_encoder == "shared" else "segment") if feed.with_segments else None
    bias = nn.Parameter(torch.tensor(losses.first_bias(config.head_batch), device=encoder.device))
    head_parameters = [*heads.parameters(), encoder.scale, bias]
    heads.train()

    def there(features: Tensor) -> Tensor:
        return features.to(encoder.device)

    def learn(
        stage: str,
        epochs: int,
        plan: Plan,
        groups: list[dict[str, Any]],
        see: Callable[[Tensor], Tensor] = there,
        read: Callable[[Tensor], Tensor] = there,
    ) -> None:
        steps = epochs * feed.steps_per_epoch(plan.size)
        optimiser, schedule = one_cycle(groups, config.weight_decay, steps)
        moving = Moving([optimiser], schedule)
        done = memory.restore(stage, moving)
        for number, step in enumerate(feed.steps(plan, done + 1, steps, team.rank, team.world), start=done + 1):
            torch.manual_seed(drawn(config.seed, stage, number, team.rank).initial_seed())  # dropout
            loss_of = losses.contrast(config.loss, encoder.inverse_temperature(), bias, config.margin)
            seen, told_of = see(step.images), read(step.texts.flatten(0, 1))
            terms = contrastive_terms(encoder, step, seen, told_of, team, loss_of, sees_segments)
            loss = terms["tile_text"] + config.segment_weight * terms.get("segment_text", 0.0)
            descend(loss, [optimiser], schedule, team)
            told = {name: term.item() for name, term in terms.items()}
            rate = {"lr": schedule.get_last_lr()[0], "scale": encoder.inverse_temperature().item()}
            on_step(
                {"stage": stage, "step": number, "steps": steps, "epoch": number * epochs / steps, "loss": loss.item()}
                | told
                | rate
            )
            memory.after(stage, number, steps, moving)

    plan = Plan(config.head_batch, config.seed, config.captions_per_tile)
    groups = [{"params": head_parameters, "lr": config.head_lr}]
    if not memory.is_past("heads", ["image"]):
        learn("heads", config.head_epochs, plan, groups)
    if config.train != "heads":
        if feed.with_segments:
            encoder.keep_segment_tower()  # segments' features are stored, by the tower as it is
        groups.append({"params": encoder.unlock_image_tower(config.unlocked_groups), "lr": config.tower_lr})

        def tower(pixels: Tensor) -> Tensor:
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                return encoder.image_features(pixels).float()

        def reader(tokens: Tensor) -> Tensor:
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                padding = getattr(encoder.tokenizer, "padding", None)
                return like_lengths_together(encoder.token_features, tokens, padding).float()

        see = torch.compile(tower) if config.compile else tower
        plan = replace(plan, size=config.image_batch, image_px=encoder.image_px)
        plan = replace(plan, crop_px=config.crop_px, crop_scale=config.crop_scale)
        read: Callable[[Tensor], Tensor] = there
        if config.train == "both":
            groups.append({"params": encoder.unlock_text_tower(), "lr": config.text_lr})
            plan = replace(plan, tokenizer=encoder.tokenizer)
            of_tile = config.captions_per_tile

            def read_in_chunks(tokens: Tensor) -> Tensor:
                return in_chunks(reader, tokens, config.chunk and config.chunk * of_tile)

            read = read_in_chunks
        # The towers stay in eval mode: BatchNorm's statistics are frozen, nothing drops out.
        learn("image", config.epochs, plan, groups, lambda pixels: in_chunks(see, pixels, config.chunk), read)
    if not feed.with_segments or config.segment_encoder == "shared":
        encoder.see_segments_as_tiles()
    encoder.views.fill_(config.views)
    encoder.eval()


@torch.inference_mode()
def embedded_sample(encoder: DualEncoder, pairs: Pairs, count: int, *place: str | int) -> tuple[Tensor, Tensor]:
    """Up to `count` tiles and as many captions of `pairs`, whoever's they are, as unit vectors `[n, D]` and `[m, D]`.

    Tiles that `pairs` holds as images, for their tower learnt, go through it, in one view each; and so for captions.

    Args:
        place: decides which; see `resuming.drawn`.
    """
    tiles, texts = pairs.sample(count, *place)
    if pairs.encoded is None:
        v = encoder.heads["image"](pairs.images[tiles].to(encoder.device))
    else:
        images = [square(decode(pairs.encoded[row]), encoder.image_px) for row in tiles.tolist()]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        v = torch.cat([encoder.heads["image"](encoder.image_features(part)) for part in pixels.split(64)])
    told = pairs.texts[texts].to(encoder.device)
    if pairs.written is not None:
        told = encoder.distinct_text_features([pairs.written[row] for row in texts.tolist()])
    return v.float(), encoder.heads["text"](told).float()


def in_chunks(tower: Callable[[Tensor], Tensor], pixels: Tensor, size: int | None) -> Tensor:
    """What the tower says of a batch, in the memory of a chunk; each is computed once more on the way back.

    The loss still sees the whole batch, so neither it nor its gradient depends on the chunks (GradCache, arXiv
    2101.06983).

    Args:
        size: images at once; None: all.
    """
    if size is None or len(pixels) <= size:
        return tower(pixels)
    return torch.cat([checkpoint(tower, chunk, use_reentrant=False) for chunk in pixels.split(size)])


def like_lengths_together(
    read: Callable[[Tensor], Tensor], tokens: Tensor, padding: int | None, size: int = 32
) -> Tensor:
    """What a tower says of texts, which it is given by length, so that few of its steps are spent on padding.

    Args:
        read: [b, l] tokens to [b, F].
        tokens: [n, L], shorter texts filled up at their end.
        padding: the token that fills up and that the tower does not heed; None: it wants all L.
        size: texts at once.

    Returns:
        [n, F], in the order of the texts.
    """
    if padding is None or len(tokens) <= size:
        return read(tokens)
    lengths = (tokens != padding).sum(dim=1)
    order = lengths.argsort(stable=True)
    parts = [read(tokens[rows, : int(lengths[rows[-1]])]) for rows in order.split(size)]
    return torch.cat(parts)[order.argsort()]


def require_shares(count: int, what: str, team: Team) -> None:
    """
    Raises:
        TrainingError: there is less than one for each process.
    """
    if count < team.world:
        raise TrainingError(f"{what}: {count}, fewer than the {team.world} workers that share them; lower --workers")


def pretrain_steps(feed: Feed, config: PretrainConfig) -> int:
    """How many steps `pretrain` takes."""
    steps = config.head_epochs * feed.steps_per_epoch(config.head_batch)
    return steps + (config.epochs * feed.steps_per_epoch(config.image_batch) if config.train != "heads" else 0)


def contrastive_terms(
    encoder: DualEncoder,
    step: Step,
    seen: Tensor,
    told_of: Tensor,
    team: Team,
    loss_of: losses.Contrast,
    sees_segments: str | None,
) -> dict[str, Tensor]:
    """The tile-text and segment-text terms of a whole step, of which this process embeds its part.

    Args:
        seen: [B/W, F] image features of the part.
        told_of: [B/W * C, F] text features of its captions.
        loss_of: see `losses.contrast`.
        sees_segments: kind of the head that does; None where there are none.
    """
    v = team.gather(encoder.heads["image"](seen))
    u = team.gather(encoder.heads["text"](told_of))
    positive = losses.positives(step.tile_keys, step.text_keys).to(encoder.device)
    terms = {"tile_text": loss_of(v, u, positive)}
    if sees_segments is not None:
        z = team.gather(pool(encoder.heads[sees_segments], step.segments, step.present, encoder.device))
        has_segment = step.has_segment.to(encoder.device)
        terms["segment_text"] = losses.segment_contrast(loss_of, z, has_segment, u, positive)
    return terms


def pool(head: nn.Module, segments: Tensor, present: Tensor, device: torch.device) -> Tensor:
    """Pooled segment embeddings `[b, D]` of [b, K, F] features; zeros where a tile has none."""
    return losses.pool_segments(head(segments.to(device)), present.to(device))


def one_cycle(
    groups: list[dict[str, Any]], weight_decay: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    optimiser = torch.optim.AdamW(groups, weight_decay=weight_decay)
    total = max(steps + 1, 5)  # OneCycleLR divides by the lengths of its phases
    peaks = [group["lr"] for group in groups]
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peaks, total_steps=total, pct_start=max(0.1, 2 / total)
    )


def descend(
    loss: Tensor,
    optimisers: list[torch.optim.Optimizer],
    schedule: torch.optim.lr_scheduler.LRScheduler,
    team: Team,
) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is {loss.item()}; lower --head-lr, or look at the tiles with urbancross gallery")
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    team.average([parameter for group in groups for parameter in group["params"]])
    for optimiser in optimisers:
        optimiser.step()
    schedule.step()
