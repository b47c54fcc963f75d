"""Adaptation on tensors: a model carried from a domain with pairs to one without; nothing of Ray."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from urbancross import curriculum, losses, matching
from urbancross.config import AdaptConfig
from urbancross.diagnostics import diagnose, stop_where_it_harms
from urbancross.errors import TrainingError
from urbancross.matching import Pairing
from urbancross.models.discriminator import Discriminator
from urbancross.models.dual_encoder import DualEncoder
from urbancross.pairs import Batch, Feed, Pairs, Plan
from urbancross.resuming import Memory, Moving, drawn
from urbancross.training import FORGETFUL, Event, Team, descend, one_cycle, pool, require_shares

ALIKE, SPREAD, ROUNDS, TEMPERATURE = 10, 0.9, 10, 0.02
"""Of `--target-pairs transport`: see `matching.neighbours`, `matching.spread` and `matching.balanced`."""
BLOCK = 8192  # rows that heads embed at once
MOST = 8192  # tiles, and distinct texts, of the target among which partners are sought at once


class Reference:
    """The encoder as it came, which says how close a source pair is to the target, whatever is learnt since.

    Pairs are asked as they come by, so a source may be of any size.
    """

    @torch.no_grad()
    def __init__(self, encoder: DualEncoder, target: Pairs) -> None:
        self.heads = copy.deepcopy(encoder.heads).eval().requires_grad_(False)
        self.device = encoder.device
        # The mean over target pairs of [v; u] is [mean v; mean u], so the target's tiles and texts need no pairing.
        means = [self._embed("image", target.images).mean(dim=0), self._embed("text", target.texts).mean(dim=0)]
        self.centre = torch.cat(means) / math.sqrt(2)  # both halves of h are unit vectors over the root of two

    def _embed(self, kind: str, features: Tensor) -> Tensor:
        return torch.cat([self.heads[kind](part.to(self.device)) for part in features.split(BLOCK)])

    @torch.no_grad()
    def closeness(self, images: Tensor, texts: Tensor) -> Tensor:
        """
        Args:
            images: [n, F] features of tiles.
            texts: [n, F] features of their texts.

        Returns:
            [n], on the encoder's device.
        """
        h = curriculum.pair_embedding(self._embed("image", images), self._embed("text", texts))
        return curriculum.closeness(h, self.centre)


def adapt(
    encoder: DualEncoder,
    source: Feed,
    target: Pairs,
    config: AdaptConfig,
    team: Team,
    on_step: Callable[[Event], None],
    memory: Memory = FORGETFUL,
    kept_back: tuple[Pairs, Pairs] | None = None,
) -> None:
    """Carry the heads from source to target (UrbanCross, arXiv 2404.14241): curriculum, weights, adversary, triplet.

    L = source_weight * L_source + adversary_weight * (L_adv(v) + L_adv(u)) + gap_weight * (L_gap(v) + L_gap(u))
    + segment_weight * L(Z, U) on the chosen source pairs, + target_weight * L_target on what stands for target pairs.

    Args:
        kept_back: pairs of source and target to diagnose the model on, now and then.

    Raises:
        TrainingError: the loss is not finite, a diagnosis says that going on does harm, or there are fewer pairs than
            processes.
    """
    require_shares(source.tiles, "pairs of the source", team)
    require_shares(len(target), "tiles of the target", team)
    require_shares(config.target_batch, "--target-batch", team)
    reference = Reference(encoder, target)
    with_segments = source.with_segments
    kinds = ["image", "text", *(["segment"] if with_segments and config.segment_encoder == "separate" else [])]
    sees_segments = "image" if config.segment_encoder == "shared" else "segment"
    heads = nn.ModuleList([encoder.heads[kind] for kind in kinds])
    torch.manual_seed(config.seed)  # the discriminators' first weights
    conditional = config.condition == "partner"
    judges = nn.ModuleDict({kind: Discriminator(encoder.width, conditional=conditional) for kind in ("image", "text")})
    judges.to(encoder.device)
    size = min(config.target_batch, len(target)) // team.world * team.world
    bias = nn.Parameter(torch.tensor(losses.first_bias(config.ratio * size), device=encoder.device))
    groups = [{"params": [*heads.parameters(), encoder.scale, bias], "lr": config.head_lr}]
    optimiser, schedule = one_cycle(groups, config.weight_decay, config.steps)
    # The discriminators keep their rate: one that slows down with the encoder no longer sees what is left of the gap.
    judging = torch.optim.AdamW(judges.parameters(), lr=config.discriminator_lr, weight_decay=config.weight_decay)
    partners = Partners(encoder, target, config)
    if partners.pairing is not None:
        require_shares(partners.pairing.partnered, "tiles of the target that have a partner", team)
    seen = torch.zeros(source.tiles, dtype=torch.bool)  # source tiles that were in a batch
    moving = Moving([optimiser, judging], schedule, [*judges.buffers(), *partners.tensors(), seen])
    first = diagnose(encoder, *kept_back, config.seed) if kept_back else None
    done = memory.restore("adapt", moving)
    if first and not done:
        on_step({"stage": "adapt", "step": 0, "steps": config.steps} | asdict(first))

    def see(kind: str, features: Tensor) -> Tensor:
        return team.gather(encoder.heads[kind](features.to(encoder.device)))

    plan = Plan(config.ratio * size, config.seed)
    # Every process sees all candidates, for which of them take part depends on all; they are features, and small.
    for step, candidates in enumerate(source.steps(plan, done + 1, config.steps, 0, 1), start=done + 1):
        generator = drawn(config.seed, "adapt", step)
        progress = (step - 1) / max(config.steps - 1, 1)
        share = curriculum.pace(progress, config.pace, config.pace_start)
        close = reference.closeness(candidates.images, candidates.texts[:, 0])
        admitted = admit(close, share, config.pace, generator, team.world)
        chosen = candidates.take(admitted.cpu())
        part = chosen.part(team.rank, team.world)
        v, u = see("image", part.images), see("text", part.texts[:, 0])
        # The target's tiles and texts are drawn apart: no pairing is used.
        tiles = torch.randperm(len(target), generator=generator)[:size].chunk(team.world)[team.rank]
        texts = torch.randperm(len(target.texts), generator=generator)[:size].chunk(team.world)[team.rank]
        target_v, target_u = see("image", target.images[tiles]), see("text", target.texts[texts])

        domains = {"image": (v, target_v), "text": (u, target_u)}
        sharpness = encoder.inverse_temperature()
        positive = losses.positives(chosen.tile_keys, chosen.text_keys).to(encoder.device)
        partners_of = believed_partners(domains, positive, sharpness) if conditional else {}
        logits = judges["image"](v, partners_of["image"][0] if conditional else None).detach()
        weights = curriculum.source_weights(close[admitted], config.weights, logits=logits, generator=generator)
        margin = curriculum.margin(progress, config.margin_start, config.margin_end)
        contrast = "infonce" if config.loss == "triplet" else config.loss
        loss_of = losses.contrast(contrast, sharpness, bias, margin)
        if config.loss != "triplet":
            terms = {"source": loss_of(v, u, positive)}
        elif config.negative == "target-tile":
            terms = {"source": losses.released_triplet(v, u, target_v, margin, weights)}
        else:
            terms = {"source": losses.weighted_triplet(v, u, positive, margin, weights, config.negative)}
        if config.gap != "none":
            apart = {"coral": losses.coral, "mmd": losses.mmd}[config.gap]
            terms["gap"] = apart(v, target_v) + apart(u, target_u)
        if with_segments:
            z = team.gather(pool(encoder.heads[sees_segments], part.segments, part.present, encoder.device))
            terms["segment"] = losses.segment_contrast(loss_of, z, chosen.has_segment.to(encoder.device), u, positive)
        each = 2 + (config.max_segments if with_segments else 0)
        embeddings = len(chosen.tile_keys) * each + 2 * size
        if (pairing := partners.at(step)) is not None:
            taken = pairing.draw(config.ratio * size, 1, generator)
            mine = taken.part(team.rank, team.world)
            known_v, known_u = (
                see("image", target.images[mine.rows]),
                see("text", target.texts[mine.captions.flatten()]),
            )
            whole = Batch(taken.rows[: len(known_v)], taken.captions[: len(known_v)])
            belong = losses.positives(whole.rows, target.text_keys[whole.captions]).to(encoder.device)
            terms["target"] = loss_of(known_v, known_u, belong)
            embeddings += len(known_v) + len(known_u)
        loss = sum((getattr(config, f"{name}_weight") * term for name, term in terms.items()), v.new_zeros(()))
        # The discriminators learn whatever their weight: their accuracy tells how far the domains lie apart.
        strength = curriculum.reversal_strength(progress, config.reversal_max)
        turn = config.adversary_weight * (strength if config.adversary == "reversed" else -strength)
        terms["adversary"], accuracy = contest(judges, domains, partners_of, weights, turn)
        descend(loss + terms["adversary"], [optimiser, judging], schedule, team)
        seen[chosen.tile_keys] = True
        told = {}
        if kept_back and first and (step % config.evaluate_steps == 0 or step == config.steps):
            now = diagnose(encoder, *kept_back, config.seed)
            stop_where_it_harms(first, now, accuracy if config.adversary_weight else None)
            told = asdict(now)
        on_step(
            {
                "stage": "adapt",
                "step": step,
                "steps": config.steps,
                "loss": loss.item(),
                "pace": len(admitted) / len(close),
                "embeddings": embeddings,
                "effective_sample_size": curriculum.effective_sample_size(weights) / len(weights),
                "discriminator_accuracy": accuracy,
                "coverage": seen.sum().item() / len(seen),
                "reversal": strength,
            }
            | {name: term.item() for name, term in terms.items()}
            | told
            | ({"margin": margin} if config.loss in ("triplet", "hinge") else {})
        )
        memory.after("adapt", step, config.steps, moving)
    if not with_segments or config.segment_encoder == "shared":
        encoder.see_segments_as_tiles()
    if config.centre:
        take_off_means(encoder, target)
    encoder.eval()


class Partners:
    """What takes the place of target pairs, chosen anew `target_rounds` times while the encoder learns.

    Attributes:
        pairing: None where --target-pairs is none.
    """

    def __init__(self, encoder: DualEncoder, target: Pairs, config: AdaptConfig) -> None:
        self.encoder, self.target, self.config = encoder, target, config
        self.every = max(math.ceil(config.steps / config.target_rounds), 1)
        self.pairing = None if config.target_pairs == "none" else self._choose(1)

    def tensors(self) -> list[Tensor]:
        """What a training that goes on from a kept state needs."""
        return [] if self.pairing is None else [self.pairing.texts, self.pairing.chances]

    def at(self, step: int) -> Pairing | None:
        if self.pairing is not None and step > 1 and (step - 1) % self.every == 0:
            chosen = self._choose(step)
            for kept, new in zip(self.tensors(), (chosen.texts, chosen.chances), strict=True):
                kept.copy_(new)
        return self.pairing

    @torch.no_grad()
    def _choose(self, step: int) -> Pairing:
        config, target, heads = self.config, self.target, self.encoder.heads
        if config.target_pairs == "known":
            share = 1.0 if config.setting == "oracle" else config.target_share
            return matching.known(target, share, drawn(config.seed, "known"))
        generator = drawn(config.seed, "partners", step)
        tiles = torch.randperm(len(target), generator=generator)[:MOST].sort().values
        rows, shares = target.distinct_texts()
        some = torch.randperm(len(rows), generator=generator)[:MOST].sort().values
        rows, shares = rows[some], shares[some] / shares[some].sum()
        v = heads["image"](target.images[tiles].to(self.encoder.device)).cpu()
        u = heads["text"](target.texts[rows].to(self.encoder.device)).cpu()
        # The means differ between modalities and domains, and say nothing about a tile or a text.
        v = nn.functional.normalize(v - v.mean(dim=0), dim=1)
        u = nn.functional.normalize(u - shares @ u, dim=1)
        if config.target_pairs == "mutual":
            found = matching.nearest(v @ u.T)
        else:
            alike = matching.neighbours(target.images[tiles], ALIKE), matching.neighbours(target.texts[rows], ALIKE)
            found = matching.transported(matching.spread(v @ u.T, *alike, SPREAD, ROUNDS), shares, TEMPERATURE)
        width = found.texts.shape[1]
        texts, chances = torch.zeros(len(target), width, dtype=torch.int64), torch.zeros(len(target), width)
        texts[tiles], chances[tiles] = rows[found.texts], found.chances
        if not chances.any():
            raise TrainingError("no tile and text of the target choose each other; give --target-pairs transport")
        return Pairing(texts, chances)


@torch.inference_mode()
def take_off_means(encoder: DualEncoder, target: Pairs) -> None:
    """Have the heads take the mean of the target's embeddings off theirs; segments are seen as tiles are."""
    for kind, features in (("image", target.images), ("text", target.texts)):
        parts = [encoder.heads[kind](part.to(encoder.device)).sum(dim=0) for part in features.split(BLOCK)]
        centre = torch.stack(parts).sum(dim=0) / len(features)
        for head in ("image", "segment") if kind == "image" else ("text",):
            seen_by: Any = encoder.heads[head]
            seen_by.centre += centre


Sides = tuple[Tensor, Tensor]  # [n, D] of the source, [m, D] of the target


def believed_partners(domains: dict[str, Sides], positive: Tensor, inverse_temperature: Tensor) -> dict[str, Sides]:
    """For every embedding the partner that the model believes it has among others of its domain, see `matching`.

    Both domains choose alike, or the choice itself would tell them apart: among equally many, and a source pair not
    among its own, for a target tile's own texts are hardly ever in the batch.

    Args:
        positive: [n, n] bool, rows tiles, columns texts of the source that belong together.
    """
    count = min(len(domains["text"][0]), len(domains["text"][1]))

    def among(own: Sides, others: Sides, barred: Tensor) -> Sides:
        return (
            matching.believed(own[0], others[0][:count], inverse_temperature, barred[:, :count]),
            matching.believed(own[1], others[1][:count], inverse_temperature),
        )

    v, u = domains["image"], domains["text"]
    return {"image": among(v, u, positive), "text": among(u, v, positive.T)}


def contest(
    judges: nn.ModuleDict, domains: dict[str, Sides], partners: dict[str, Sides], weights: Tensor, turn: float
) -> tuple[Tensor, float]:
    """What discriminators lose at telling source from target, and how often they are right.

    Args:
        domains: embeddings by kind.
        partners: what conditional discriminators see beside them; nothing for plain ones.
        weights: [n] of the source pairs.
        turn: strength at which the gradient is reversed on its way to the encoder.
    """
    lost, right = [], []
    for kind, sides in domains.items():
        beside = partners.get(kind, (None, None))
        of_source, of_target = (
            judges[kind](losses.reverse_gradient(side, turn), partner)
            for side, partner in zip(sides, beside, strict=True)
        )
        lost.append(losses.adversarial(of_source, of_target, weights))
        right += [(of_source > 0).float().mean(), (of_target <= 0).float().mean()]
    return torch.stack(lost).sum(), torch.stack(right).mean().item()


def admit(close: Tensor, share: float, kind: curriculum.Pace, generator: torch.Generator, world: int) -> Tensor:
    """The candidates that the curriculum lets in, closest to the target first: rows, ascending.

    Their number is rounded to a multiple of the team's size, up where there are enough candidates.

    Args:
        close: [n] of the candidates, from `Reference`.
        share: of them, from `curriculum.pace`.
    """
    count = len(close) // world * world
    wanted = math.ceil(math.ceil(share * count - 1e-9) / world) * world
    return curriculum.select(close[:count], wanted / count, kind, generator)
