"""What is known of agents' sessions, on its way to the disk."""

from asyncio import sleep
from collections.abc import Sequence

from derops_headend.fleet.sessions import SessionTable
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.group_commit import GroupCommit

_REMEMBER_SECONDS = 0.2


class SessionMemory:
    """Stores who held the stream of each asset that changed; nobody waits for it."""

    def __init__(self, sessions: SessionTable, store: DesiredStore) -> None:
        self._sessions, self._store = sessions, store
        self._commit: GroupCommit[str] = GroupCommit(self._remember)
        self._changed: set[str] = set()

    def keep(self, asset_uid: str) -> None:
        """Have what is known of an asset's streams stored, as it is by then."""
        if asset_uid not in self._changed:
            self._changed.add(asset_uid)
            self._commit.add(asset_uid, lambda _: None)

    async def run(self) -> None:
        """Store until closed and empty. One task runs this."""
        await self._commit.run()

    def close(self) -> None:
        """Let run return once all is stored."""
        self._commit.close()

    async def _remember(self, asset_uids: Sequence[str]) -> None:
        await sleep(_REMEMBER_SECONDS)  # it may be much: what changes meanwhile is stored once
        self._changed.difference_update(asset_uids)
        await self._store.remember([self._sessions.memory(uid) for uid in asset_uids])
