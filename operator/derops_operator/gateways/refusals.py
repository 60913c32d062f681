"""Why gateways refuse the operator: told on /readyz, and answered by another start."""

import time
from collections.abc import Callable
from dataclasses import replace

from derops.observability import Readiness
from derops_operator.gateways.eras import Start, after_refusal, explain, read_refusal

MAX_WORDS = 300
"""Characters that are told of one address."""

_PARTS = {
    "OperatorClockAhead": "operator clock",
    "StaleOperator": "operator start",
    "NotTheOperatorsKey": "operator key",
}
"""What is told as degraded where a replica refuses us, by its reason."""


class GatewayRefusals:
    """The refusals that stand, and the start that the desired state counts from."""

    def __init__(self, start: Start, readiness: Readiness, now_us: Callable[[], int]) -> None:
        """Make it.

        Args:
            start: The start as the process began.
            readiness: Told of refusals.
            now_us: Unix time in us.
        """
        self._start = start
        self._readiness = readiness
        self._now_us = now_us
        self._began = time.monotonic()
        self._refusals: dict[str, tuple[str, str]] = {}
        """Part and words, by address."""

    @property
    def start_ms(self) -> int:
        """The start to count from now, Unix time in ms."""
        return self._start.start_ms

    def hear(self, address: str, details: str) -> None:
        """Tell why a replica does not take us, and take another start where that is the way.

        Args:
            address: Of the replica.
            details: With which it ended the stream; what is no refusal is ignored.
        """
        reason = details.partition(": ")[0]
        part = _PARTS.get(reason)
        if part is None:
            return
        text, refusal, now_ms = details, read_refusal(details), self._now_us() // 1000
        if refusal is not None:
            began_ms = now_ms - round((time.monotonic() - self._began) * 1000)
            self._start = after_refusal(self._start, refusal, began_ms=began_ms, now_ms=now_ms)
            text = f"{explain(self._start, refusal, now_ms)} ({reason})"
        known, _ = self._refusals.get(address, (part, ""))
        self._refusals[address] = (part, f"{address}: {text[:MAX_WORDS]}")
        for each in {known, part}:
            self._tell(each)

    def note_accepted(self, address: str) -> None:
        """Hear that a replica has taken a snapshot from this start."""
        if not self._start.was_accepted:
            self._start = replace(self._start, was_accepted=True)
        self.forget(address)

    def forget(self, address: str) -> None:
        """Tell no more of a replica."""
        part, _ = self._refusals.pop(address, ("", ""))
        if part:
            self._tell(part)

    def _tell(self, part: str) -> None:
        words = sorted(text for known, text in self._refusals.values() if known == part)
        if words:
            self._readiness.degraded(part, "; ".join(words))
        else:
            self._readiness.found(part)
