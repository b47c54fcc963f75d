"""BLEU-4 and CIDEr-D of generated captions, as the COCO caption evaluation computes them, with intervals over tiles.

Words are lower-case runs of letters and digits (the COCO evaluation splits with a Java program and then drops
punctuation, which on plain sentences is the same). N = tiles.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of CIDEr-D's length penalty (Vedantam et al. 2015, section 6)

Ngrams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())


def ngrams(text: str, n: int) -> Ngrams:
    found = words(text)
    return Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))


def bleu_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What BLEU sums over tiles, `[N, 10]`.

    Columns: matched n-grams (n = 1 to 4), n-grams (n = 1 to 4), words, words of the reference closest in length.
    """
    rows = []
    for candidate, texts in zip(candidates, references, strict=True):
        length = len(words(candidate))
        closest = min((len(words(text)) for text in texts), key=lambda found: (abs(found - length), found))
        matched, given = [], []
        for n in range(1, LONGEST + 1):
            own = ngrams(candidate, n)
            most: Ngrams = Counter()
            for text in texts:
                most |= ngrams(text, n)
            matched.append((own & most).total())
            given.append(own.total())
        rows.append([*matched, *given, length, closest])
    return np.array(rows, dtype=float)


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-4 of summed counts `[..., 10]` (Papineni et al. 2002): one number for a whole set of captions."""
    matched, given = counts[..., :LONGEST], counts[..., LONGEST : 2 * LONGEST]
    length, closest = counts[..., -2], counts[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matched / np.maximum(given, 1)).mean(axis=-1))
        brevity = np.minimum(1, np.exp(1 - closest / length))
    return np.where(matched[..., -1] > 0, precision * brevity, 0.0)


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each tile's caption, `[N]` from 0 to 10; n-grams that many tiles' references share count less."""
    scores = np.zeros(len(candidates))
    for n in range(1, LONGEST + 1):
        told = [[ngrams(text, n) for text in texts] for texts in references]
        tiles_with = Counter(gram for texts in told for gram in set().union(*texts))
        for i, candidate in enumerate(candidates):
            own = _weighed(ngrams(candidate, n), tiles_with, len(references))
            likeness = [_likeness(own, _weighed(text, tiles_with, len(references))) for text in told[i]]
            gaps = [len(words(candidate)) - len(words(text)) for text in references[i]]
            penalties = [math.exp(-(gap**2) / (2 * SIGMA**2)) for gap in gaps]
            scores[i] += 10 / LONGEST * float(np.mean(np.multiply(likeness, penalties)))
    return scores


def _weighed(grams: Ngrams, tiles_with: Counter[tuple[str, ...]], tiles: int) -> dict[tuple[str, ...], float]:
    return {gram: count * math.log(tiles / max(tiles_with[gram], 1)) for gram, count in grams.items()}


def _likeness(own: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    """Cosine, with no more of a candidate's n-gram counted than the reference has of it."""
    shared = sum(min(weight, other[gram]) * other[gram] for gram, weight in own.items() if gram in other)
    norm = math.hypot(*own.values()) * math.hypot(*other.values())
    return shared / norm if norm else 0.0


def scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], bootstrap: int = 1000, seed: int = 0
) -> dict[str, dict[str, float | list[float]]]:
    """{"BLEU-4": {"value", "ci95": [low, high]}, "CIDEr-D": ...}; intervals over tiles drawn with replacement.

    The weights of CIDEr's n-grams stay those of all tiles.
    """
    counts, each = bleu_counts(candidates, references), cider(candidates, references)
    tiles = len(candidates)
    drawn = np.random.default_rng(seed).multinomial(tiles, np.full(tiles, 1 / tiles), size=bootstrap)
    found = {
        "BLEU-4": (bleu(counts.sum(axis=0)), bleu(drawn @ counts)),
        "CIDEr-D": (each.mean(), drawn @ each / tiles),
    }
    return {
        name: {"value": float(value), "ci95": np.quantile(resampled, [0.025, 0.975]).tolist()}
        for name, (value, resampled) in found.items()
    }
