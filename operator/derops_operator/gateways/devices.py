"""What agents say of their devices, and how often what changes is shown."""

from collections import defaultdict

from derops.devices import bounded
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2

DEVICE_EVERY_US = 30 * SECOND_US
"""How often what is wrong with one device is shown anew: each time is a write to the API server."""

DEVICES_PER_SECOND = 20
"""How many devices are shown anew: the other writes are for what is ordered."""


class DeviceDisplay:
    """What the replicas tell of each asset's device. Not for several threads."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, control_pb2.DeviceState]] = defaultdict(dict)
        self._shown: dict[str, tuple[control_pb2.DeviceState, int]] = {}
        self._turns: dict[str, int] = {}
        """When newer facts of a device may be shown, where others are shown first."""

        self._next_turn_us = 0

    def note(self, replica: str, state: control_pb2.DeviceState) -> None:
        """Keep what an agent says of its device, as a replica tells it."""
        self._told[state.asset_uid][replica] = control_pb2.DeviceState(
            asset_uid=state.asset_uid,
            facts=bounded(state.facts),
            received_us=state.received_us,
        )

    def forget_replica(self, replica: str) -> None:
        """Forget what a replica told."""
        for told in self._told.values():
            told.pop(replica, None)

    def forget(self, asset_uid: str) -> None:
        """Forget the device of an asset that is gone."""
        self._told.pop(asset_uid, None)
        self._shown.pop(asset_uid, None)
        self._turns.pop(asset_uid, None)

    def uids(self) -> set[str]:
        """Return the uids of all assets whose device anything is known of."""
        return self._told.keys() | self._shown.keys() | self._turns.keys()

    def show(
        self, asset_uid: str, replica: str, since_us: int, now_us: int
    ) -> tuple[agent_pb2.DeviceFacts | None, int | None]:
        """Return what to show of a device, and when there is something newer to show.

        What an earlier stream said is not shown. Anything new is shown some time after what was
        shown of this device, and when it is its turn among all devices.
        """
        newest = self._told.get(asset_uid, {}).get(replica)
        if newest is None or newest.received_us < since_us:
            return None, None
        shown, shown_us = self._shown.get(asset_uid, (None, 0))
        if shown is not None and shown.facts == newest.facts:
            self._shown[asset_uid] = (newest, shown_us)
            return newest.facts, None
        if shown is not None and shown_us <= now_us:  # else a clock was set back
            again_us = self._turn_us(asset_uid, shown_us, now_us)
            if now_us < again_us:
                return (shown.facts if shown.received_us >= since_us else None), again_us
        self._turns.pop(asset_uid, None)
        self._shown[asset_uid] = (newest, now_us)
        return newest.facts, None

    def _turn_us(self, asset_uid: str, shown_us: int, now_us: int) -> int:
        """Return from when on a device that was shown before may be shown anew."""
        due_us = shown_us + DEVICE_EVERY_US
        if now_us < due_us:
            return due_us
        return self._turns.get(asset_uid) or self._give_turn(asset_uid, now_us)

    def _give_turn(self, asset_uid: str, now_us: int) -> int:
        """Return when a device may be shown anew; all have one turn at most that is to come."""
        last_us = now_us + len(self._shown) * SECOND_US // DEVICES_PER_SECOND
        turn_us = max(now_us, min(self._next_turn_us, last_us))
        self._turns[asset_uid] = turn_us
        self._next_turn_us = turn_us + SECOND_US // DEVICES_PER_SECOND
        return turn_us
