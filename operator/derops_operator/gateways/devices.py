"""What is told of each asset's device and of its data path, and how often what changes is shown.

Agents say it of their devices; gateways judge, by that and by what arrives, where data stops.
"""

from collections import defaultdict
from typing import NamedTuple

from derops.data_path import LINK_OF, AssetFault, Link
from derops.devices import bounded, plain
from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2

DEVICE_EVERY_US = 30 * SECOND_US
"""How often what is wrong with one device is shown anew: each time is a write to the API server."""

DEVICES_PER_SECOND = 20
"""How many devices are shown anew: the other writes are for what is ordered."""

PATH_WORDS_BYTES = 500
"""Of what a gateway says of one data path in words."""


class Shown(NamedTuple):
    """What is shown of one device."""

    state: control_pb2.DeviceState
    at_us: int
    judged: str | None = None
    """Why its data stops, as was last shown; empty = it flows, None = nothing was shown yet."""

    judged_us: int = 0
    """From when on that is shown."""


class DeviceDisplay:
    """What the replicas tell of each asset's device. Not for several threads."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, control_pb2.DeviceState]] = defaultdict(dict)
        self._shown: dict[str, Shown] = {}
        self._turns: dict[str, int] = {}
        """When newer facts of a device may be shown, where others are shown first."""

        self._next_turn_us = 0

    def note(self, replica: str, state: control_pb2.DeviceState) -> None:
        """Keep what is told of an asset's device, as a replica tells it."""
        self._told[state.asset_uid][replica] = control_pb2.DeviceState(
            asset_uid=state.asset_uid,
            facts=bounded(state.facts) if state.HasField("facts") else None,
            received_us=state.received_us,
            path=_bounded_path(state.path) if state.HasField("path") else None,
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
    ) -> tuple[Shown | None, int | None]:
        """Return what to show of a device, and when there is something newer to show.

        What an earlier stream said is not shown. Anything new is shown some time after what was
        shown of this device, and when it is its turn among all devices.
        """
        newest = self._told.get(asset_uid, {}).get(replica)
        if newest is None or newest.received_us < since_us:
            return None, None
        shown = self._shown.get(asset_uid)
        if shown is None:
            shown = Shown(newest, now_us)
        elif not _is_news(shown, newest):
            shown = shown._replace(state=newest)
        else:
            again_us = self._turn_us(asset_uid, shown.at_us, now_us)
            # Where it was shown in the future, a clock was set back.
            if shown.at_us <= now_us < again_us:
                return (shown if shown.state.received_us >= since_us else None), again_us
            self._turns.pop(asset_uid, None)
            shown = shown._replace(state=newest, at_us=now_us)
        if newest.HasField("path") and newest.path.reason != shown.judged:
            shown = shown._replace(judged=newest.path.reason, judged_us=now_us)
        self._shown[asset_uid] = shown
        return shown, None

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


def _is_news(shown: Shown, told: control_pb2.DeviceState) -> bool:
    """Tell whether something else is told than is shown; that nothing is judged yet is no news."""
    if told.facts != shown.state.facts:
        return True
    return told.HasField("path") and shown.judged not in {None, told.path.reason}


def _bounded_path(path: control_pb2.LinkState) -> control_pb2.LinkState | None:
    """Return a judgement within its bounds; None = a newer gateway says what we do not know.

    An agent without a stream, and all that keeps it from one, is the operator's to judge.
    """
    if not path.link and not path.reason:
        return control_pb2.LinkState()
    if path.reason not in set(AssetFault):
        return None
    fault = AssetFault(path.reason)
    if path.link != LINK_OF[fault] or LINK_OF[fault] is Link.STREAM:
        return None
    return control_pb2.LinkState(
        link=path.link,
        reason=fault,
        message=plain(path.message, PATH_WORDS_BYTES),
    )
