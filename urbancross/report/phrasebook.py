"""Phrases that stand for a model on a page without one: typed words are matched with them. Pure."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

LEAST = 3  # letters of a word that is a phrase of its own
WORDS_SHARE = 4  # of so many phrases, one may be a single word
IDLE = """a an and are as at be beside by few for from has have in into is it its many near next of on or other several
some that the their there these this to two three four five very was were where which while with"""
STOP = tuple(IDLE.split())  # words that tell little


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def phrases_and_words(counts: Mapping[str, int], most: int) -> list[str]:
    """The commonest phrases, and the commonest of their words, which are phrases too: `most` in all, none twice.

    Args:
        counts: of each phrase, how often it is said.
    """
    said: Counter[str] = Counter()
    for phrase, count in counts.items():
        said.update(dict.fromkeys(words_of(phrase), count))
    telling = {word: n for word, n in said.items() if len(word) >= LEAST and word not in STOP and not word.isdigit()}
    words = _commonest(telling, most // WORDS_SHARE)
    phrases = _commonest(counts, most)
    return list(dict.fromkeys([*phrases[: most - len(words)], *words, *phrases]))[:most]


def _commonest(counts: Mapping[str, int], most: int) -> list[str]:
    return sorted(counts, key=lambda text: (-counts[text], text))[:most]


def best_parts(
    told: Sequence[Sequence[str]], looks: np.ndarray, known: Mapping[str, int], texts: np.ndarray, most: int
) -> list[list[str]]:
    """Of each tile's phrases, the `most` that say best how it looks; those without a vector come last, in order.

    Args:
        told: the phrases of N tiles.
        looks: [N, D] of the tiles.
        known: row of `texts` by phrase.
        texts: [P, D] of phrases.
    """
    found = []
    for parts, tile in zip(told, looks, strict=True):
        distinct = list(dict.fromkeys(parts))
        rows = [known[part] for part in distinct if part in known]
        scores = dict(zip(rows, texts[rows] @ tile, strict=True)) if len(distinct) > 1 and rows else {}
        order = sorted(distinct, key=lambda part: -scores.get(known.get(part, -1), -np.inf))
        found.append(order[:most])
    return found
