"""An encoder for many threads: one encodes at a time, texts that wait go together, and are remembered."""

import itertools
import threading
from collections.abc import Sequence

import numpy as np

from urbancross.evidence import MOST_PHRASES
from urbancross.models.dual_encoder import DualEncoder
from urbancross.serve.newest import Newest

TEXTS = 20_000  # whose vectors are kept
FEW_PHRASES = 2  # of captions, new to a search, that are encoded while other searches wait


class Remembering:
    """An encoder that one thread uses at a time, for tokenizers want that; it remembers texts.

    Threads that wait for it have their texts encoded together by the first of them.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self.inner, self.width = encoder, encoder.width
        self._turn, self._guard = threading.Lock(), threading.Lock()
        self._texts: Newest[np.ndarray] = Newest(TEXTS)
        self._wanted: dict[str, None] = {}
        self._here = 0  # threads that wait for texts

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        found = {text: vector for text in texts if (vector := self._texts.get(text)) is not None}
        while new := [text for text in texts if text not in found]:
            with self._guard:
                self._wanted.update(dict.fromkeys(new))
                self._here += 1
            try:
                with self._turn:
                    self._encode_wanted()
            finally:
                with self._guard:
                    self._here -= 1
            found |= {text: vector for text in new if (vector := self._texts.get(text)) is not None}
        return (
            np.stack([found[text] for text in texts]) if texts else np.empty((0, self.inner.vector_width), np.float32)
        )

    def _encode_wanted(self) -> None:
        with self._guard:
            texts, self._wanted = list(self._wanted), {}
        for text, vector in zip(texts, self.inner.encode_texts(texts) if texts else (), strict=True):
            self._texts.put(text, vector.copy())

    def affordable(self, phrases: list[str]) -> list[str]:
        """Those to compare with a query: while others wait, few that are not known yet."""
        most = FEW_PHRASES if self._here else MOST_PHRASES
        known = [self._texts.get(phrase) is not None for phrase in phrases]
        left = itertools.accumulate(not is_known for is_known in known)
        return [phrase for phrase, is_known, new in zip(phrases, known, left, strict=True) if is_known or new <= most]

    def encode_image_queries(self, images: Sequence[np.ndarray]) -> np.ndarray:
        with self._turn:
            return self.inner.encode_image_queries(images)

    def as_queries(self, vectors: np.ndarray) -> np.ndarray:
        with self._turn:
            return self.inner.as_queries(vectors)
