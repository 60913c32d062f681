"""How much an agent may say of dispatches that nobody here holds. Pure.

It may be the late truth about one that is settled. It may be invented: then each costs a row in the
history of its own asset, and no more than this many.
"""

from derops.schedules import SECOND_US

MOST_AT_ONCE = 1000
"""Reports of one asset."""

_A_DAY_US = 24 * 3600 * SECOND_US


class UnknownDispatches:
    """An allowance for each asset that spoke of such; what was used comes back within a day."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[int, float]] = {}

    def take(self, asset_uid: str, now_us: int) -> bool:
        """Take one report of an asset, if it has any left."""
        then_us, used = self._used.get(asset_uid, (now_us, 0.0))
        used = max(0.0, used - max(0, now_us - then_us) / _A_DAY_US * MOST_AT_ONCE)
        may = used + 1 <= MOST_AT_ONCE
        self._used[asset_uid] = (now_us, used + may)
        return may

    def forget(self, asset_uid: str) -> None:
        """Forget an asset that is gone."""
        self._used.pop(asset_uid, None)
