"""For how long no gateway was heard, and the failsafe that follows."""

import structlog

from derops.checks import Refusal
from derops.lifecycle import Reason
from derops.schedules import SECOND_US
from derops_agent.clock import Clock
from derops_agent.execution.site import AssetSpec


class Contact:
    """Contact of one asset with its gateways; lost for too long it is in failsafe."""

    def __init__(self, clock: Clock) -> None:
        self.failsafe = False
        """Only a new snapshot ends it."""

        self._clock = clock
        self._heard_us = clock.monotonic_us()
        self._log = structlog.get_logger("controller")

    def note(self) -> None:
        """Note that a gateway was heard."""
        self._heard_us = self._clock.monotonic_us()

    def restore(self) -> None:
        """End failsafe: a snapshot is whole."""
        self.failsafe = False
        self.note()

    def enters_failsafe(self, asset: AssetSpec | None) -> bool:
        """Note whether no gateway was heard for too long; return whether that is new."""
        if asset is None or not asset.revert_on_comms_loss or self.failsafe:
            return False
        silent_us = self._clock.monotonic_us() - self._heard_us
        limit_us = asset.failsafe_after_seconds * SECOND_US
        if not limit_us or silent_us <= limit_us:
            return False
        self.failsafe = True
        self._log.warning("failsafe.entered", silent_seconds=silent_us / SECOND_US)
        return True

    def refuse_start(self, asset: AssetSpec | None) -> Refusal | None:
        """Return why nothing may start while no gateway is heard, or None."""
        if not self.failsafe or asset is None:
            return None
        limit_us = asset.failsafe_after_seconds * SECOND_US
        # It lasts until the snapshot is whole, when a gateway is heard again.
        silent_us = max(limit_us, self._clock.monotonic_us() - self._heard_us)
        return Refusal(
            reason=Reason.COMMS_LOSS_FAILSAFE,
            message=(
                f"no gateway was heard for {silent_us / SECOND_US:.0f} s (failsafeAfterSeconds "
                f"{limit_us // SECOND_US} s)"
            ),
        )
