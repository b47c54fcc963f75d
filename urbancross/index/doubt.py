"""When nothing matches: how near a text's best tiles are, held against texts that surely match.

Nearness is the mean score of the ten best tiles: on RSICD it tells texts about what was taken out of the archive from
others better than the best score alone does (docs/results.md). The threshold is what all but `FALSE_ALARMS` of the
captions of the archive's own tiles reach; how many others of them stay below is the measured rate of false alarms.
"""

from dataclasses import dataclass

import numpy as np

FALSE_ALARMS = 0.05
TILES = 10  # the best, whose scores are averaged
FEWEST = 40  # texts to calibrate with


@dataclass(frozen=True)
class Doubt:
    """
    Attributes:
        nothing_matches: the best tiles are less near than those of nearly all texts that match.
        nearness: mean score of the best tiles.
        threshold: below which nothing matches.
        false_alarm: of texts that do match, the measured share of which it would be said that nothing does.
    """

    nothing_matches: bool
    nearness: float
    threshold: float
    false_alarm: float


@dataclass(frozen=True)
class Calibration:
    """
    Attributes:
        threshold, false_alarm: as in `Doubt`.
        texts: that the rate was measured with.
    """

    threshold: float
    false_alarm: float
    texts: int

    @classmethod
    def of(cls, scores: np.ndarray) -> "Calibration | None":
        """From the scores `[Q, TILES]` of texts that match, in any order but a chosen one; None where they are too few.

        Every second text sets the threshold, the others measure the rate.
        """
        if len(scores) < FEWEST:
            return None
        near = scores.mean(axis=1)
        threshold = float(np.quantile(near[::2], FALSE_ALARMS))
        return cls(round(threshold, 4), round(float((near[1::2] < threshold).mean()), 4), len(near[1::2]))

    def judge(self, scores: np.ndarray) -> Doubt:
        """Of a text, by the scores of its best tiles, `TILES` or as many as there are."""
        near = float(scores[:TILES].mean()) if len(scores) else -1.0
        return Doubt(near < self.threshold, round(near, 4), self.threshold, self.false_alarm)
