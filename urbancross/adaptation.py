"""Adaptation on tensors: a model carried from a domain with pairs to one without; nothing of Ray."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from urbancross import curriculum, losses
from urbancross.config import AdaptConfig
from urbancross.models.discriminator import Discriminator
from urbancross.models.dual_encoder import DualEncoder
from urbancross.pairs import Batch, Pairs
from urbancross.resuming import Memory, Moving, drawn
from urbancross.training import FORGETFUL, Event, Team, descend, one_cycle, pool, see_segments_as_tiles


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
    optimiser, schedule = one_cycle(groups, config.weight_decay, config.steps)
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
        descend(loss, [optimiser, judging], schedule, team)
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
