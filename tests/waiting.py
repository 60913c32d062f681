"""Waiting for what another task does."""

import asyncio
from collections.abc import Callable


async def until(look: Callable[[], object], patience_seconds: float = 20.0) -> None:
    """Look again and again, until there is something to see."""
    async with asyncio.timeout(patience_seconds):
        while not look():
            await asyncio.sleep(0.01)
