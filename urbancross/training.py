"""Pretraining and adaptation on tensors: one process of a team, any device, nothing of Ray.

Every process holds the same order of pairs, works on its part of each batch, and sees the whole batch's embeddings
through `Team.gather`, whose gradient flows back to the process that made them. With gradients averaged over the team,
W processes with B/W pairs each take the same steps as one with B.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from urbancross import curriculum, losses
from urbancross.config import AdaptConfig, PretrainConfig
from urbancross.errors import TrainingError
from urbancross.models.discriminator import Discriminator
from urbancross.models.dual_encoder import DualEncoder
from urbancross.pairs import Batch, Pairs
from urbancross.resuming import Memory, Moving, drawn

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
    pairs: Pairs,
    config: PretrainConfig,
    team: Team,
    on_step: Callable[[Event], None],
    memory: Memory = FORGETFUL,
) -> None:
    """Learn by contrast, L = L(V, U) + segment_weight * L(Z, U) (UrbanCross, arXiv 2404.14241): heads, then tower."""
    heads = nn.ModuleList([encoder.heads["image"], encoder.heads["text"]])
    if pairs.present.any():
        heads.append(encoder.heads["segment"])  # otherwise it has nothing to learn from
    bias = nn.Parameter(torch.tensor(losses.first_bias(config.head_batch), device=encoder.device))
    head_parameters = [*heads.parameters(), encoder.scale, bias]
    heads.train()

    def learn(
        stage: str, epochs: int, size: int, groups: list[dict[str, Any]], see: Callable[[Batch, int], Tensor]
    ) -> None:
        steps = epochs * pairs.steps_per_epoch(size)
        optimiser, schedule = _one_cycle(groups, config.weight_decay, steps)
        moving = Moving([optimiser], schedule)
        done = memory.restore(stage, moving)
        batches = pairs.batches(size, done + 1, steps, config.seed, config.captions_per_tile)
        for step, batch in enumerate(batches, start=done + 1):
            torch.manual_seed(drawn(config.seed, stage, step, team.rank).initial_seed())  # dropout
            part = batch.part(team.rank, team.world)
            loss_of = losses.contrast(config.loss, encoder.inverse_temperature(), bias, config.margin)
            terms = contrastive_terms(encoder, pairs, batch, part, see(part, step), team, loss_of)
            loss = terms["tile_text"] + config.segment_weight * terms.get("segment_text", 0.0)
            _descend(loss, [optimiser], schedule, team)
            told = {name: term.item() for name, term in terms.items()}
            rate = {"lr": schedule.get_last_lr()[0], "scale": encoder.inverse_temperature().item()}
            on_step(
                {"stage": stage, "step": step, "steps": steps, "epoch": step * epochs / steps, "loss": loss.item()}
                | told
                | rate
            )
            memory.after(stage, step, steps, moving)

    def features(part: Batch, step: int) -> Tensor:
        return pairs.images[part.rows].to(encoder.device)

    groups = [{"params": head_parameters, "lr": config.head_lr}]
    if not memory.is_past("heads", ["image"]):
        learn("heads", config.head_epochs, config.head_batch, groups, features)
    if config.train == "image":
        groups.append({"params": encoder.unlock_image_tower(config.unlocked_groups), "lr": config.tower_lr})

        def tower(pixels: Tensor) -> Tensor:
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                return encoder.image_features(pixels).float()

        def look(part: Batch, step: int) -> Tensor:
            crops = drawn(config.seed, "crops", step, team.rank)
            pixels = pairs.pixels(part.rows, encoder.image_px, config.crop_px, crops)
            return in_chunks(tower, pixels, config.chunk)

        # The tower stays in eval mode: its BatchNorm statistics are frozen.
        learn("image", config.epochs, config.image_batch, groups, look)
    see_segments_as_tiles(encoder, pairs)
    encoder.eval()


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


def see_segments_as_tiles(encoder: DualEncoder, pairs: Pairs) -> None:
    """What has learnt from no segment embeds them as it does tiles, rather than at random."""
    if not pairs.present.any():
        encoder.heads["segment"].load_state_dict(encoder.heads["image"].state_dict())


def pretrain_steps(pairs: int, config: PretrainConfig) -> int:
    """How many steps `pretrain` takes for that many pairs."""
    steps = config.head_epochs * max(pairs // config.head_batch, 1)
    return steps + (config.epochs * max(pairs // config.image_batch, 1) if config.train == "image" else 0)


def contrastive_terms(
    encoder: DualEncoder,
    pairs: Pairs,
    batch: Batch,
    part: Batch,
    seen: Tensor,
    team: Team,
    loss_of: losses.Contrast,
) -> dict[str, Tensor]:
    """The tile-text and segment-text terms of a whole batch, of which this process embeds its part.

    Args:
        seen: [B/W, F] image features of the part.
        loss_of: see `losses.contrast`.
    """
    device = encoder.device
    v = team.gather(encoder.heads["image"](seen))
    u = team.gather(encoder.heads["text"](pairs.texts[part.captions.flatten()].to(device)))
    whole = Batch(batch.rows[: len(v)], batch.captions[: len(v)])
    positive = losses.positives(whole.rows, pairs.text_keys[whole.captions]).to(device)
    terms = {"tile_text": loss_of(v, u, positive)}
    if pairs.present.any():
        z = team.gather(pool(encoder, pairs, part))
        has_segment = pairs.present[whole.rows].any(dim=1).to(device)
        terms["segment_text"] = losses.segment_contrast(loss_of, z, has_segment, u, positive)
    return terms


def pool(encoder: DualEncoder, pairs: Pairs, part: Batch) -> Tensor:
    """Pooled segment embeddings `[B, D]` of a batch; zeros where a tile has none."""
    segments = encoder.heads["segment"](pairs.segments[part.rows].to(encoder.device))
    return losses.pool_segments(segments, pairs.present[part.rows].to(encoder.device))


@torch.inference_mode()
def reference_closeness(encoder: DualEncoder, source: Pairs, target: Pairs) -> Tensor:
    """How close each source caption, with its tile, is to the target domain: [M].

    The mean over target pairs of [v; u] is [mean v; mean u], so the target's tiles and texts need no pairing.
    """

    def embed(kind: str, features: Tensor) -> Tensor:
        return encoder.heads[kind](features.to(encoder.device)).cpu()

    v, u = embed("image", source.images), embed("text", source.texts)
    centre_v, centre_u = embed("image", target.images).mean(dim=0), embed("text", target.texts).mean(dim=0)
    tile = torch.repeat_interleave(torch.arange(len(source)), source.starts.diff())
    centre = torch.cat([centre_v, centre_u]) / math.sqrt(2)  # both halves of h are unit vectors over the root of two
    parts = [
        curriculum.closeness(curriculum.pair_embedding(v[tile[i : i + 8192]], u[i : i + 8192]), centre)
        for i in range(0, len(u), 8192)
    ]
    return torch.cat(parts)


def adapt(
    encoder: DualEncoder,
    source: Pairs,
    target: Pairs,
    config: AdaptConfig,
    team: Team,
    on_step: Callable[[Event], None],
    memory: Memory = FORGETFUL,
) -> None:
    """Carry the heads from source to target (UrbanCross, arXiv 2404.14241): curriculum, weights, adversary, triplet.

    L = L_source + adversary_weight * (L_adv(v) + L_adv(u)) + segment_weight * L(Z, U), on the chosen source pairs.
    """
    close = reference_closeness(encoder, source, target).clone()  # by the pretrained encoder, before it moves
    kinds = ["image", "text", *(["segment"] if source.present.any() else [])]
    heads = nn.ModuleList([encoder.heads[kind] for kind in kinds])
    torch.manual_seed(config.seed)  # the discriminators' first weights
    judges = nn.ModuleDict({kind: Discriminator(encoder.width) for kind in ("image", "text")}).to(encoder.device)
    size = min(config.target_batch, len(target)) // team.world * team.world
    bias = nn.Parameter(torch.tensor(losses.first_bias(config.ratio * size), device=encoder.device))
    groups = [{"params": [*heads.parameters(), encoder.scale, bias], "lr": config.head_lr}]
    optimiser, schedule = _one_cycle(groups, config.weight_decay, config.steps)
    # The discriminators keep their rate: one that slows down with the encoder no longer sees what is left of the gap.
    judging = torch.optim.AdamW(judges.parameters(), lr=config.discriminator_lr, weight_decay=config.weight_decay)
    moving = Moving([optimiser, judging], schedule, list(judges.buffers()))
    done = memory.restore("adapt", moving)
    for step in range(done + 1, config.steps + 1):
        generator = drawn(config.seed, "adapt", step)
        progress = (step - 1) / max(config.steps - 1, 1)
        share = curriculum.pace(progress, config.pace, config.pace_start)
        batch = candidates(source, close, config.ratio * size, share, config.pace, generator, team.world)
        part = batch.part(team.rank, team.world)
        v = team.gather(encoder.heads["image"](source.images[part.rows].to(encoder.device)))
        u = team.gather(encoder.heads["text"](source.texts[part.captions.flatten()].to(encoder.device)))
        # The target's tiles and texts are drawn apart: no pairing is used.
        tiles = torch.randperm(len(target), generator=generator)[:size].chunk(team.world)[team.rank]
        texts = torch.randperm(len(target.texts), generator=generator)[:size].chunk(team.world)[team.rank]
        target_v = team.gather(encoder.heads["image"](target.images[tiles].to(encoder.device)))
        target_u = team.gather(encoder.heads["text"](target.texts[texts].to(encoder.device)))

        weights = curriculum.source_weights(
            close[batch.captions.flatten()].to(encoder.device),
            config.weights,
            logits=judges["image"](v).detach(),
            generator=generator,
        )
        positive = losses.positives(batch.rows, source.text_keys[batch.captions]).to(encoder.device)
        margin = curriculum.margin(progress, config.margin_start, config.margin_end)
        contrast = "infonce" if config.loss == "triplet" else config.loss
        loss_of = losses.contrast(contrast, encoder.inverse_temperature(), bias, margin)
        strength = curriculum.reversal_strength(progress, config.reversal_max)
        terms = {
            "source": losses.weighted_triplet(v, u, positive, margin, weights, config.negative)
            if config.loss == "triplet"
            else loss_of(v, u, positive)
        }
        right = []
        for kind, from_source, from_target in (("image", v, target_v), ("text", u, target_u)):
            of_source = judges[kind](losses.reverse_gradient(from_source, strength))
            of_target = judges[kind](losses.reverse_gradient(from_target, strength))
            terms[f"adversary_{kind}"] = losses.adversarial(of_source, of_target, weights)
            right += [(of_source > 0).float().mean(), (of_target <= 0).float().mean()]
        loss = terms["source"] + config.adversary_weight * (terms["adversary_image"] + terms["adversary_text"])
        if "segment" in kinds:
            z = team.gather(pool(encoder, source, part))
            has_segment = source.present[batch.rows].any(dim=1).to(encoder.device)
            terms["segment_text"] = losses.segment_contrast(loss_of, z, has_segment, u, positive)
            loss = loss + config.segment_weight * terms["segment_text"]
        _descend(loss, [optimiser, judging], schedule, team)
        on_step(
            {
                "stage": "adapt",
                "step": step,
                "steps": config.steps,
                "loss": loss.item(),
                "triplet" if config.loss == "triplet" else "tile_text": terms["source"].item(),
                "adversary": (terms["adversary_image"] + terms["adversary_text"]).item() / 2,
                "pace": len(batch.rows) / min(config.ratio * size, len(source)),
                "effective_sample_size": curriculum.effective_sample_size(weights) / len(weights),
                "discriminator_accuracy": torch.stack(right).mean().item(),
                "reversal": strength,
            }
            | ({"margin": margin} if config.loss in ("triplet", "hinge") else {})
            | ({"segment_text": terms["segment_text"].item()} if "segment_text" in terms else {})
        )
        memory.after("adapt", step, config.steps, moving)
    see_segments_as_tiles(encoder, source)
    encoder.eval()


def candidates(
    source: Pairs,
    close: Tensor,
    count: int,
    share: float,
    kind: curriculum.Pace,
    generator: torch.Generator,
    world: int,
) -> Batch:
    """The share of `count` random source pairs that the curriculum lets in, closest to the target first.

    Their number is rounded to a multiple of the team's size, up where there are enough candidates.
    """
    rows = torch.randperm(len(source), generator=generator)[: min(count, len(source)) // world * world]
    drawn = source.choose(rows, generator)
    wanted = math.ceil(math.ceil(share * len(rows) - 1e-9) / world) * world
    kept = curriculum.select(close[drawn.captions.flatten()], wanted / len(rows), kind, generator)
    return Batch(drawn.rows[kept], drawn.captions[kept])


def _one_cycle(
    groups: list[dict[str, Any]], weight_decay: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    optimiser = torch.optim.AdamW(groups, weight_decay=weight_decay)
    total = max(steps + 1, 5)  # OneCycleLR divides by the lengths of its phases
    peaks = [group["lr"] for group in groups]
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peaks, total_steps=total, pct_start=max(0.1, 2 / total)
    )


def _descend(
    loss: Tensor,
    optimisers: list[torch.optim.Optimizer],
    schedule: torch.optim.lr_scheduler.LRScheduler,
    team: Team,
) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is {loss.item()}; lower --head-lr, or look at the inputs with urbancross report")
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    team.average([parameter for group in groups for parameter in group["params"]])
    for optimiser in optimisers:
        optimiser.step()
    schedule.step()
