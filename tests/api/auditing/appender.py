"""An API's side of the audit in a process of its own, to be killed: prints what is durable."""

import asyncio
import itertools
import sys
from pathlib import Path

import psycopg
from tests.api.auditing.making import make_call

from derops_headend.api.audit.trail import AuditTrail


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=2)


async def _append_forever(directory: Path, url: str, run: str) -> None:
    trail = AuditTrail.open(directory, replica="api-0", connect=lambda: _connect(url))
    await trail.start()
    numbers = itertools.count()

    async def append() -> None:
        while True:
            call = make_call()
            call.request_id = f"{run}-{next(numbers)}"
            await trail.complete(call, 200, "OK", 1)
            sys.stdout.write(f"{call.request_id}\n")
            sys.stdout.flush()

    await asyncio.gather(*(append() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(_append_forever(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
