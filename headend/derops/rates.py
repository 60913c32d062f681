"""How often something may happen, for each of many keys. Pure."""

from collections import OrderedDict

MOST_KEYS = 20_000
"""Beyond, the key that was quiet for longest is forgotten, and begins with a full burst again."""


class Rates:
    """Lets each key act ``burst`` times at once and ``per_second`` in the long run.

    How often a key was held back is counted, and told when it may act again.
    """

    def __init__(self, *, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._of: OrderedDict[str, tuple[float, float, int]] = OrderedDict()

    def admit(self, key: str, now_seconds: float) -> int | None:
        """Return how often the key was held back since it last acted; None = it is held back."""
        tokens, at, held = self._of.pop(key, (self._burst, now_seconds, 0))
        tokens = min(self._burst, tokens + max(0.0, now_seconds - at) * self._per_second)
        admitted = tokens >= 1
        self._of[key] = (tokens - admitted, now_seconds, 0 if admitted else held + 1)
        if len(self._of) > MOST_KEYS:
            self._of.popitem(last=False)
        return held if admitted else None
