"""Captions from geo-tags alone: sentences filled with nouns, for laptops, as a fallback and as an ablation."""

import random
from collections.abc import Sequence

from urbancross.captions.words import noun

VERSION = "1"  # goes into the captions table; raise it with every change to the texts below

# Sentences read well whether {c} (the centre) and {s} (the surroundings) are singular, plural or a list.
_BOTH = (
    "A satellite image of {c}, surrounded by {s}.",
    "An aerial view of {c} with {s} around.",
    "The middle of this tile shows {c}; its surroundings include {s}.",
    "Seen from above: {c}, close to {s}.",
    "{C} can be seen from above, with {s} nearby.",
    "This scene has {c} in the middle and {s} around it.",
    "Looking down on {c}, with {s} close by.",
)
_ONE = (
    "A satellite image of {c}.",
    "An aerial view of {c}.",
    "This tile shows {c}.",
    "Seen from above: {c}.",
    "{C} can be seen from above.",
    "This scene has {c}.",
    "Looking down on {c}.",
)


class TemplateCaptioner:
    """Captions from the geo-tags alone, with no look at the pixels: they name what the tags name and nothing else."""

    name = "template"

    def captions(
        self, center_tags: Sequence[str], surrounding_tags: Sequence[str], seed: int, count: int = 5
    ) -> list[str]:
        """Write up to `count` different captions; the same arguments give the same captions on every machine.

        The first names as much as reads well, the others draw on fewer things. A tile without tags gets none.

        Args:
            center_tags: `key=value` under the tile's centre, the most important first.
            surrounding_tags: `key=value` of the rest of the tile, likewise.
            seed: chooses wording and selection.
            count: how many captions to write.
        """
        center = list(dict.fromkeys(map(noun, center_tags)))
        around = [words for words in dict.fromkeys(map(noun, surrounding_tags)) if words not in center]
        if not center:
            center, around = around, []
        if not center:
            return []
        rng = random.Random(seed)
        sentences = list(_BOTH if around else _ONE)
        rng.shuffle(sentences)
        written: dict[str, None] = {}
        for attempt in range(4 * count):
            if len(written) == count:
                break
            most = 4 if attempt == 0 else rng.randint(1, 4)
            told_center = _some(center, min(most, 3), rng)
            told_around = _some(around, most, rng)
            sentence = sentences[attempt % len(sentences)]
            c, s = _listed(told_center), _listed(told_around)
            written[sentence.format(c=c, C=c[:1].upper() + c[1:], s=s)] = None
        return list(written)


def _some(things: list[str], most: int, rng: random.Random) -> list[str]:
    """The first thing, and others at random up to `most`, in their order."""
    others = rng.sample(range(1, len(things)), min(most, len(things)) - 1) if things else []
    return things[:1] + [things[i] for i in sorted(others)]


def _listed(things: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(things[:-1]), *things[-1:]) if part)
