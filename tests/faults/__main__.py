"""``make faults``: every fault many times over.

DEROPS_SEED chooses the plan (random, and printed, without), DEROPS_ROUNDS how often each fault
happens (100), DEROPS_SENDERS how many agents are played (20), DEROPS_FAULTS which faults (all; or
parts of names, separated by ``;``), DEROPS_ENGINES which event logs (sqlite,jetstream),
DEROPS_DATABASE which database (postgresql; or timescaledb).
"""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults.faults import KINDS, Kind, Setting
from tests.faults.ground import SMALL_LOG, Ground, small_disk
from tests.faults.running import Report, run
from tests.stack.nats import NatsServer
from tests.stack.postgres import PostgresServer
from tests.stack.timescale import find_timescale

AGENTS = 4
_SMALL = (Setting.SMALL_LOG, Setting.SMALL_DISK)
_ALSO_WHEN_SMALL = ("gateway killed", "writer killed")


def main() -> int:
    """Run; 0 means that no promise was broken, nothing honest put into quarantine, enough tried."""
    # What was started ends with us, however we are told to.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = int(os.environ.get("DEROPS_SEED") or secrets.randbelow(2**31))
    rounds = int(os.environ.get("DEROPS_ROUNDS") or 100)
    senders = int(os.environ.get("DEROPS_SENDERS") or 20)
    only = os.environ.get("DEROPS_FAULTS", "").split(";")
    wanted = [kind for kind in KINDS if any(part in kind.name for part in only)]
    print(f"seed {seed}, {rounds} rounds of each fault, {senders} senders", flush=True)
    if not wanted or rounds < 1:
        print(f"nothing to do: {rounds} rounds of {len(wanted)} faults", flush=True)
        return 1
    broken = runs = 0
    for engine in (os.environ.get("DEROPS_ENGINES") or "sqlite,jetstream").split(","):
        for small in (False, True):
            ran = _run(engine, wanted, small=small, senders=senders, rounds=rounds, seed=seed)
            if ran is not None:
                report, short = ran
                log = f"{engine}, small" if small else engine
                print("\n".join([*report.lines(log), *short]), flush=True)
                broken += len(report.violations) + report.quarantined + len(short)
                runs += 1
    print(f"{runs} runs", flush=True)
    return 1 if broken or not runs else 0


def _server() -> PostgresServer:
    if os.environ.get("DEROPS_DATABASE") == "timescaledb":
        return PostgresServer(installation=find_timescale())
    return PostgresServer()


def _run(
    engine: str, wanted: Sequence[Kind], *, small: bool, senders: int, rounds: int, seed: int
) -> tuple[Report, list[str]] | None:
    with contextlib.ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        nats = opened.enter_context(NatsServer()) if engine == "jetstream" else None
        ground = Ground(
            directory=directory,
            server=opened.enter_context(_server()),
            senders=senders,
            agents=0 if small else AGENTS,
            nats=nats,
            disk=opened.enter_context(small_disk(directory)) if small and not nats else None,
            environment=SMALL_LOG if small else {},
        )
        kinds = [
            kind
            for kind in wanted
            if ground.has(kind.setting)
            and (not small or kind.setting in _SMALL or kind.name in _ALSO_WHEN_SMALL)
        ]
        if not any(kind.setting in _SMALL for kind in kinds) and small:
            return None
        if not kinds:
            return None
        report = asyncio.run(run(ground, kinds, rounds=rounds, seed=seed))
        return report, report.shortfalls(kinds, rounds)


sys.exit(main())
