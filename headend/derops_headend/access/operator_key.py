"""The operator's public key: that of its certificate, and for a while the one before.

A certificate of the control CA with the operator's name is not enough: whoever gets such a
certificate issued would be the operator.
"""

from dataclasses import dataclass

from derops.errors import IdentityRefusedError
from derops.schedules import SECOND_US

PREDECESSOR_SECONDS = 600
"""How long the previous key is good after a change: the operator's own mount may lag."""

_SHOWN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKeys:
    """SHA-256 of public keys, lower-case hexadecimal; empty = none."""

    current: str = ""
    previous: str = ""
    previous_until_us: int = 0

    def follow(self, current: str, now_us: int) -> "OperatorKeys":
        """Return the keys after ``current`` was found in the file."""
        if current == self.current:
            return self
        return OperatorKeys(
            current=current,
            previous=self.current,
            previous_until_us=now_us + PREDECESSOR_SECONDS * SECOND_US if self.current else 0,
        )

    def check(self, public_key_sha256: str, now_us: int) -> None:
        """Check the key of a peer that calls itself the operator.

        Raises:
            IdentityRefusedError: It is another key. Transient: this side's mount may lag.
        """
        if public_key_sha256 == self.current:
            return
        left_us = self.previous_until_us - now_us
        # Bounded from above too: a clock that is set back keeps no key good for longer.
        in_time = 0 < left_us <= PREDECESSOR_SECONDS * SECOND_US
        if in_time and public_key_sha256 == self.previous:
            return
        raise IdentityRefusedError(
            "NotTheOperatorsKey",
            f"public key {public_key_sha256[:_SHOWN]} is not that of the operator's certificate, "
            f"{self.current[:_SHOWN]}",
            transient=True,
        )
