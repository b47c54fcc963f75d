"""What was asked for last, kept up to a size, for threads to share."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Newest(Generic[V]):
    """A dictionary that forgets what was asked for longest ago.

    Args:
        most: sum of the sizes of what is kept; what is larger by itself is not kept at all.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: V, size: int = 1) -> None:
        with self._lock:
            if key in self._kept:
                self.held -= self._kept.pop(key)[1]
            if size > self.most:
                return
            self._kept[key] = (value, size)
            self.held += size
            while self.held > self.most:
                self.held -= self._kept.popitem(last=False)[1][1]
