"""What is scarce, shared among those who call: nobody has all of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from weakref import WeakValueDictionary

SHARE: ContextVar[str] = ContextVar("share", default="")
"""Whose share the call takes that is being answered; see ``Caller.share``."""


class Places:
    """So many at once, and so many of one holder."""

    def __init__(self, most: int, of_one: int) -> None:
        self._all, self._of_one = asyncio.Semaphore(most), of_one
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Is there while somebody holds or awaits it."""

    @asynccontextmanager
    async def hold(self, holder: str) -> AsyncIterator[None]:
        """Have a place, as soon as there is one."""
        share = self._of.setdefault(holder, asyncio.Semaphore(self._of_one))
        async with share, self._all:
            yield

    def has_all(self, holder: str) -> bool:
        """Tell whether a holder has as many as one may have."""
        share = self._of.get(holder)
        return share is not None and share.locked()
