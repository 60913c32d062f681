"""Faults out of a plan on a field that sends, with checks on the way and at the end."""

import asyncio
import bisect
import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.checker import Stored, Violation, checked, violations
from tests.faults.faults import NOTHING, Fault, Kind, plan
from tests.faults.ground import Ground
from tests.faults.playing import DATABASE, PATIENCE_SECONDS, Field, played
from tests.faults.reading import read
from tests.faults.rolled_up import wrong_roll_ups
from tests.field.journal import Journal

CHECK_ROUNDS = 40


@dataclass(slots=True)
class Outcome:
    """What came of all rounds of one fault."""

    rounds: int = 0
    batches_sent: int = 0
    batches_acknowledged: int = 0
    lost: int = 0
    """Like the other violations it counts in the round in which its batch was acknowledged."""
    duplicates: int = 0
    other_violations: int = 0
    first_acknowledgement_seconds: float = 0.0
    """The longest from the restart of what was killed until an agent heard of its telemetry."""
    all_acknowledged_seconds: float = 0.0
    """The longest until all had heard."""


@dataclass(slots=True)
class Report:
    """What a run did and found."""

    seed: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    rows: int = 0
    gaps: int = 0
    quarantined: int = 0
    """Of the honest."""
    violations: list[Violation] = field(default_factory=list)

    def shortfalls(self, kinds: Sequence[Kind], rounds: int) -> list[str]:
        """Return in what this was too little to say that faults break no promise."""
        short = [] if kinds else ["no fault was chosen"]
        for name in (NOTHING, *(kind.name for kind in kinds)):
            outcome = self.outcomes.get(name, Outcome())
            least = 1 if name == NOTHING else rounds
            if outcome.rounds < least:
                short.append(f"{name}: {outcome.rounds} rounds, fewer than {least}")
            if not outcome.batches_acknowledged:
                short.append(f"{name}: no batch was acknowledged")
        return short if self.rows else [*short, "nothing was stored"]

    @property
    def batches_sent(self) -> int:
        """Within rounds."""
        return sum(outcome.batches_sent for outcome in self.outcomes.values())

    @property
    def batches_acknowledged(self) -> int:
        """Within rounds."""
        return sum(outcome.batches_acknowledged for outcome in self.outcomes.values())

    def lines(self, log: str) -> list[str]:
        """Return it as JSON: a line for each fault, and one for all."""
        total = {
            "log": log,
            "seed": self.seed,
            "rounds": sum(outcome.rounds for outcome in self.outcomes.values()),
            "batches_sent": self.batches_sent,
            "batches_acknowledged": self.batches_acknowledged,
            "rows": self.rows,
            "gaps": self.gaps,
            "quarantined": self.quarantined,
            "violations": len(self.violations),
            "first": [str(violation) for violation in self.violations[:5]],
        }
        rows = [
            {"log": log, "fault": name, **asdict(outcome)}
            for name, outcome in sorted(self.outcomes.items())
        ]
        return [json.dumps(_rounded(row)) for row in [*rows, total]]


class Run:
    """One field, one plan."""

    def __init__(self, running: Field, report: Report) -> None:
        self.field, self.report = running, report
        self._started = time.monotonic()
        self._begun: list[float] = []
        self._names: list[str] = []

    async def round(self, fault: Fault) -> None:
        """Let a fault happen, and wait until all senders are acknowledged again."""
        outcome = self.report.outcomes.setdefault(fault.name, Outcome())
        self._begun.append(time.monotonic())
        self._names.append(fault.name)
        sent, acknowledged = self._totals()
        await self.field.strike(fault)
        first, every = await self.field.recovered(fault)
        sent_now, acknowledged_now = self._totals()
        outcome.rounds += 1
        outcome.batches_sent += sent_now - sent
        outcome.batches_acknowledged += acknowledged_now - acknowledged
        outcome.first_acknowledgement_seconds = max(outcome.first_acknowledgement_seconds, first)
        outcome.all_acknowledged_seconds = max(outcome.all_acknowledged_seconds, every)

    async def check(self) -> None:
        """Compare what is held with the journals, and forget what is whole."""
        journals = self.field.journals
        # What is promised from here on need not be there yet.
        promised = {journal.outbox_id: journal.acknowledged for journal in journals}
        stored = await asyncio.to_thread(self._read, journals)
        found = list(violations(journals, stored, promised))
        self.report.violations += found
        before = stored.counts_before.values()
        self.report.rows = len(stored.rows) + sum(points for points, _ in before)
        self.report.gaps = len(stored.gaps) + sum(gaps for _, gaps in before)
        self.report.quarantined = len(stored.quarantined)
        for violation in found:
            self._blame(violation)
        print(
            f"{time.monotonic() - self._started:.0f} s, {len(self._names)} rounds, "
            f"{self.report.rows} rows, {len(self.report.violations)} violations",
            *found[:5],
            sep="\n  ",
            flush=True,
        )
        if not found:
            for journal, done in checked(journals, stored, promised):
                journal.forget(done)

    def _read(self, journals: Sequence[Journal]) -> Stored:
        with contextlib.closing(self.field.open_log()) as log:
            url = self.field.server.url(DATABASE)
            return read(url, log, journals, self.field.hostile.uid)

    def _blame(self, violation: Violation) -> None:
        """Count a violation at the fault in whose round its batch was acknowledged, or the last."""
        at = self._begun[-1]
        for journal in self.field.journals:
            if journal.asset_uid == violation.asset_uid and violation.sequence:
                at = journal.acknowledged_when(violation.sequence) or at
        place = max(0, bisect.bisect_right(self._begun, at) - 1)
        outcome = self.report.outcomes[self._names[place]]
        if violation.kind == "lost":
            outcome.lost += 1
        elif violation.kind == "duplicate":
            outcome.duplicates += 1
        else:
            outcome.other_violations += 1

    def _totals(self) -> tuple[int, int]:
        journals = self.field.journals
        return (
            sum(journal.batches_sent for journal in journals),
            sum(journal.acknowledged for journal in journals),
        )


async def run(
    ground: Ground,
    kinds: Sequence[Kind],
    *,
    rounds: int,
    seed: int,
    longest_seconds: float = math.inf,
) -> Report:
    """Let every fault that can happen here happen ``rounds`` times, and check on the way."""
    kinds = [kind for kind in kinds if ground.has(kind.setting)]
    report = Report(seed)
    async with played(ground) as running:
        going = Run(running, report)
        faults = plan(kinds, rounds, seed, longest_seconds=longest_seconds)
        # A fault proves nothing where nothing arrives without one.
        await going.round(Fault(name=NOTHING, after_seconds=0.3, lasts_seconds=0, choice=0))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not report.rows:
                await going.check()
        if report.violations or report.quarantined:
            raise AssertionError(f"without a fault: {report.lines('')}")
        for number, fault in enumerate(faults, start=1):
            await going.round(fault)
            if number % CHECK_ROUNDS == 0:
                await going.check()
        await running.finish()
        await going.check()
        report.violations += await asyncio.to_thread(wrong_roll_ups, ground.server.url(DATABASE))
    return report


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()
    }
