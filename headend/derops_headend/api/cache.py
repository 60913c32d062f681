"""Values that may be believed for a while. Pure."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Expiring(Generic[Key, Value]):
    """Values that are forgotten after their time, and earlier if there are too many."""

    def __init__(self, most: int, now_seconds: Callable[[], float]) -> None:
        self._most, self._now_seconds = most, now_seconds
        self._kept: OrderedDict[Key, tuple[Value, float]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Return the value that is kept; None = there is none, or no more."""
        found = self._kept.get(key)
        if found is None or found[1] <= self._now_seconds():
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: Key, value: Value, seconds: float) -> None:
        """Keep a value; forget the one that was used longest ago if there are too many."""
        self._kept[key] = (value, self._now_seconds() + seconds)
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
