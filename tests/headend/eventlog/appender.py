"""A gateway's side of the log in a process of its own, to be killed: prints what is durable."""

import asyncio
import itertools
import sqlite3
import sys
import time
from pathlib import Path

from derops.wire.v1 import log_pb2
from derops_headend.eventlog.sqlite import SqliteEventLog

FAILED = b"failed\n"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _append_forever(path: Path) -> None:
    log = SqliteEventLog(path)
    numbers = itertools.count(time.time_ns())

    async def append() -> None:
        while True:
            body = str(next(numbers)).encode()
            try:
                await log.append([log_pb2.LogEntry(kind=log_pb2.TELEMETRY, body=body)])
            except sqlite3.Error:
                _say("failed")
            else:
                _say(body.decode())

    await asyncio.gather(*(append() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(_append_forever(Path(sys.argv[1])))
