"""``make soak``: every fault many times over.

DEROPS_SEED chooses the plan (random, and printed, without), DEROPS_ROUNDS how often each fault
happens (100), DEROPS_SENDERS how many agents send (40), DEROPS_FAULTS which ones (parts of their
names, separated by commas; all), DEROPS_ENGINES which event logs (sqlite,jetstream).
"""

import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
from pathlib import Path

from tests.faults.running import run
from tests.stack.nats import NatsServer
from tests.stack.postgres import PostgresServer


def main() -> int:
    """Run; 0 means that no promise was broken."""
    seed = int(os.environ.get("DEROPS_SEED", secrets.randbelow(2**31)))
    rounds = int(os.environ.get("DEROPS_ROUNDS", "100"))
    senders = int(os.environ.get("DEROPS_SENDERS", "40"))
    print(f"seed {seed}, {rounds} rounds of each fault, {senders} senders", flush=True)
    broken = 0
    only = os.environ.get("DEROPS_FAULTS", "").split(",")
    for engine in os.environ.get("DEROPS_ENGINES", "sqlite,jetstream").split(","):
        with contextlib.ExitStack() as opened:
            directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            server = opened.enter_context(PostgresServer())
            nats = opened.enter_context(NatsServer()) if engine == "jetstream" else None
            report = asyncio.run(
                run(
                    directory,
                    server,
                    senders=senders,
                    rounds=rounds,
                    seed=seed,
                    nats=nats,
                    only=only,
                )
            )
        print(engine, report.lines(), flush=True)
        broken += len(report.violations)
    return 1 if broken else 0


sys.exit(main())
