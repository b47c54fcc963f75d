"""Captions by a vision-language model: questions, answers read and judged, asked again, and what stands in for them.

Knows nothing of engines: one is a function from questions to texts.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from urbancross import tiles
from urbancross.captions import prompts
from urbancross.captions.prompts import Answer, Facts
from urbancross.captions.template import TemplateCaptioner
from urbancross.captions.told import Told
from urbancross.captions.truth import judge
from urbancross.errors import TileError, TileSkipped


@dataclass(frozen=True)
class Question:
    image: bytes  # encoded
    pixels: np.ndarray  # the same, [H, W, 3] uint8
    text: str  # what follows the image
    seed: int


# Texts in the order of the questions; a TileError where the engine takes no such question.
Ask = Callable[[Sequence[Question]], Sequence[str | TileError]]


@dataclass(frozen=True)
class Tile:
    """What is known of a tile: its pixels, its own tags, and those that the model is told."""

    tile_id: str
    image: bytes | None
    facts: Facts
    center_tags: Sequence[str]
    surrounding_tags: Sequence[str]
    told: Told


@dataclass(frozen=True)
class Asking:
    """How a model is asked: `caption`'s flags."""

    captions_per_tile: int = 1
    seed: int = 0
    attempts: int = 3
    on_contradiction: Literal["regenerate", "drop", "keep"] = "regenerate"
    fallback: bool = True


@dataclass
class _Draft:
    """One caption of one tile in the making."""

    tile: Tile
    pixels: np.ndarray
    number: int
    told: Told
    asked: int = 0
    answer: Answer | None = None
    second_best: Answer | None = None  # it reads well but contradicts the map
    problem: TileError | None = None
    refused: bool = False


@dataclass
class ModelCaptioner:
    """Writes captions with an engine; the same seed asks the same questions, whatever tiles come together."""

    ask: Ask
    engine: str
    model: str
    asking: Asking
    template: TemplateCaptioner = field(default_factory=TemplateCaptioner)

    def captions(self, batch: Sequence[Tile]) -> dict[str, dict[str, Any] | TileError]:
        """What goes into the rows of a batch, by tile: columns of `schemas.CAPTIONS`, or why there are none.

        An answer that cannot be read, or that contradicts the map, is asked for again with another seed; the last try
        tells the model no tags. Where nothing can be read, a template speaks for the tags that were told.
        """
        found: dict[str, dict[str, Any] | TileError] = {}
        drafts: list[_Draft] = []
        for tile in batch:
            try:
                pixels = tiles.decode(tile.image or b"")
            except TileError as error:
                found[tile.tile_id] = error
                continue
            drafts += [_Draft(tile, pixels, number, tile.told) for number in range(self.asking.captions_per_tile)]
        for _ in range(self.asking.attempts):
            self._ask(_open(drafts))
        with_tags = [draft for draft in _open(drafts) if draft.told.tags]
        for draft in with_tags:
            draft.told = Told()
        self._ask(with_tags, last=True)
        of_tile: dict[str, list[_Draft]] = {}
        for draft in drafts:
            of_tile.setdefault(draft.tile.tile_id, []).append(draft)
        return found | {tile_id: self._row(own) for tile_id, own in of_tile.items()}

    def _ask(self, drafts: Sequence[_Draft], last: bool = False) -> None:
        """Ask once for each draft, and accept what can be accepted."""
        questions = []
        for draft in drafts:
            told = prompts.prompt(draft.told.center, draft.told.surrounding, draft.tile.facts)
            questions.append(Question(draft.tile.image or b"", draft.pixels, told, self._seed(draft)))
            draft.asked += 1
        texts = self.ask(questions) if questions else []
        for draft, text in zip(drafts, texts, strict=True):
            if isinstance(text, TileError):
                draft.problem, draft.refused = text, True
                continue
            try:
                answer = prompts.parse(text)
            except TileError as error:
                draft.problem = error
                continue
            again = self.asking.on_contradiction == "regenerate" and not last
            if again and _verdict(draft.tile, [answer]).word == "contradicted":
                draft.second_best = answer
            else:
                draft.answer = answer

    def _seed(self, draft: _Draft) -> int:
        told = f"{self.asking.seed}/{draft.tile.tile_id}/{draft.number}/{draft.asked}"
        return random.Random(told).getrandbits(31)

    def _row(self, drafts: Sequence[_Draft]) -> dict[str, Any] | TileError:
        """The row of one tile, from its drafts."""
        tile, told = drafts[0].tile, drafts[0].told
        answers = [answer for draft in drafts if (answer := draft.answer or draft.second_best) is not None]
        texts, engine = list(dict.fromkeys(answer.description for answer in answers)), self.engine
        refused = next((draft.problem for draft in drafts if draft.refused), None)
        if not texts and self.asking.fallback and refused is None:
            told, engine = tile.told, "template"
            texts = self.template.captions(told.center, told.surrounding, self._seed(drafts[0]), len(drafts))
        if not texts:
            return refused or drafts[0].problem or TileError("no answer")
        verdict = _verdict(tile, answers) if answers else judge(texts, tile.center_tags, tile.surrounding_tags)
        if verdict.word == "contradicted" and self.asking.on_contradiction == "drop":
            return TileSkipped(f"contradicts the map: {'; '.join(verdict.contradictions)}")
        return {
            "captions": texts,
            "engine": engine,
            "model": self.model,
            "prompt_version": prompts.VERSION,
            "tags": told.tags,
            "tags_from": told.origin,
            "seed": self.asking.seed,
            "land_use": next((answer.land_use for answer in answers), None),
            "objects": list(dict.fromkeys(thing for answer in answers for thing in answer.objects)),
            "attempts": max(draft.asked for draft in drafts),
            "repaired": any(answer.repaired for answer in answers),
            "verdict": asdict(verdict),
        }


def _open(drafts: Sequence[_Draft]) -> list[_Draft]:
    return [draft for draft in drafts if draft.answer is None and not draft.refused]


def _verdict(tile: Tile, answers: Sequence[Answer]) -> Any:
    texts = [answer.description for answer in answers]
    return judge(texts, tile.center_tags, tile.surrounding_tags, answers[0].land_use)


def tally(captions: pa.Table) -> dict[str, int]:
    """What a user wants counted of a shard of captions, beside its failures."""
    done = captions.filter(pc.is_null(captions["failure"]))
    words = pc.struct_field(done["verdict"], "word")
    return {
        "repaired": pc.sum(pc.fill_null(done["repaired"], False)).as_py() or 0,
        "asked again": pc.sum(pc.greater(pc.fill_null(done["attempts"], 0), 1)).as_py() or 0,
        "from the template": pc.sum(pc.and_(pc.equal(done["engine"], "template"), pc.is_valid(done["model"]))).as_py()
        or 0,
        "contradict the map": pc.sum(pc.equal(words, "contradicted")).as_py() or 0,
    }
