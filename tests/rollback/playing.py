"""The whole product goes to another release and back, one program after the other.

Dispatches run over each step, one on each device, and telemetry flows. The cluster's objects (CRDs,
policies, roles, certificates) are those of this tree throughout, as after ``helm upgrade``: a roll
back does not take them away.

The first operator is of this tree: an earlier one does not write all ConfigMaps that the others are
given. It has no store; gateway, writer, API and agents begin with the earlier release, and so do
their stores.
"""

import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e.acting import TERMINAL, Pilot, battery_manifest, conditions, instant
from tests.kills.judging import DEFAULT, Violation, judge
from tests.rollback.counting import Life, find_lost
from tests.rollback.releases import Release
from tests.stack.processes import Process, StackError, http_ok
from tests.stack.stack import OWN_PROGRAMS, Stack
from tests.waiting import eventually

ORDER = ("writer", "gateway", "api", "operator", "agent")
"""Of an upgrade: whoever reads something new comes before whoever writes it. The other way back."""

ASSETS = ("battery-0", "battery-1", "battery-2")
WINDOW_SECONDS = 8
SETTLE_SECONDS = 2.0
"""From the start of the dispatches to the end of a program."""

PATIENCE_SECONDS = 120
_NEW = "battery-new"
_REFUSED = "schema version"


@dataclass(slots=True)
class Report:
    """What became of it."""

    steps: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Programs that did not go back, and in which words."""

    violations: list[Violation] = field(default_factory=list)
    dispatches: int = 0
    samples: int = 0
    lost: int = 0
    left_behind: set[str] = field(default_factory=set)
    """Conditions of assets that the earlier operator does not know: they stand still."""


class Releases:
    """Plays steps on one stack that began with an earlier release."""

    def __init__(self, stack: Stack, previous: Release, parts: Sequence[str]) -> None:
        self._stack, self._previous, self._parts = stack, previous, parts
        self._pilot = Pilot(stack, "rollback")
        self._lives: dict[str, list[Life]] = {name: [] for name in ASSETS}
        self._watts = 1000
        self.report = Report()

    def begin(self) -> None:
        """Make the assets, wait for their agents, and bring the operator to the earlier release."""
        since = time.time()
        self._pilot.create_namespace()
        self._pilot.apply_all([battery_manifest(name) for name in ASSETS])
        for name in ASSETS:
            self._pilot.wait_for_condition("derasset", name, "Connected", "True")
            self._lives[name].append(Life(since))
        self._replace("operator", self._previous.programs)
        for name in ASSETS:
            self._pilot.wait_for_condition("derasset", name, "Connected", "True")

    def play(self) -> None:
        """Upgrade each program, then roll each back that can be, with dispatches over each step."""
        self._step("as it was", "", self._previous.programs)
        for part in self._parts:
            self._step(f"upgrade {part}", part, OWN_PROGRAMS)
        for part in reversed(self._parts):
            self._step(f"roll back {part}", part, self._previous.programs)
        self._step("as it is", "", self._previous.programs)
        self._find_left_behind()
        self._compare_samples()

    def _step(self, what: str, part: str, programs: Path) -> None:
        began = time.monotonic()
        names = self._order()
        time.sleep(SETTLE_SECONDS)
        self._look()
        done = self._replace(part, programs) if part else ""
        self._judge(names)
        self._look()
        seconds = time.monotonic() - began
        self.report.steps.append(f"{what}: {done or 'done'} ({seconds:.0f} s)")
        print(self.report.steps[-1], flush=True)

    def _order(self) -> dict[str, str]:
        """Order a value of its own from each asset; return the names of the dispatches."""
        self._watts += 10
        names = {asset: f"step-{self._watts}-{asset}" for asset in ASSETS}
        self._pilot.apply_all(
            [
                {
                    "apiVersion": "derops.io/v1alpha1",
                    "kind": "Dispatch",
                    "metadata": {"name": name},
                    "spec": {
                        "assetRef": {"name": asset},
                        "setpoint": {"mode": "ActivePower", "activePowerWatts": self._watts},
                        "startTime": instant(0),
                        "durationSeconds": WINDOW_SECONDS,
                        "startDeadlineSeconds": 60,
                        "latePolicy": "KeepDuration",
                        "reportDeadlineSeconds": 300,
                    },
                }
                for asset, name in names.items()
            ]
        )
        return names

    def _replace(self, part: str, programs: Path) -> str:
        """Have a part run another release; where it refuses, this tree's again. Say what it was."""
        processes = self._processes(part)
        for process, _ in processes:
            process.terminate()
        try:
            self._start(part, processes, programs)
        except StackError as error:
            words = next((line for line in str(error).splitlines() if _REFUSED in line), "")
            if not words:
                raise
            self.report.refused[part] = words
            for process, _ in processes:
                process.terminate()
            if part == "agent":
                self._give_devices_back()
            self._start(part, processes, OWN_PROGRAMS)
            return f"refused, and this release again: {words}"
        return ""

    def _give_devices_back(self) -> None:
        """Undo what an agent that then refused did to the simulated devices.

        A device lives in the agent's process, and one of a release that cannot read its file puts
        it aside and begins anew. It is no store of the product: a real device stays as it is.
        """
        for file in self._stack.data_directory.rglob("device.json.damaged"):
            file.replace(file.with_suffix(""))

    def _start(self, part: str, processes: list[tuple[Process, str]], programs: Path) -> None:
        if part == "agent":
            for name in ASSETS:
                self._lives[name].append(Life(time.time()))
        for process, _ in processes:
            process.use(programs)
            process.start()
        for process, url in processes:
            process.wait_until(http_ok(url))

    def _processes(self, part: str) -> list[tuple[Process, str]]:
        """Return the processes of a part, and where each says that it is ready."""
        if part != "agent":
            url = f"http://127.0.0.1:{self._stack.ops_ports[part]}/readyz"
            return [(self._stack.parts[part], url)]
        agents = [self._stack.fleet.get(self._pilot.namespace, name) for name in ASSETS]
        return [(each.process, f"http://127.0.0.1:{each.ops_port}/livez") for each in agents]

    def _look(self) -> None:
        """Ask each agent how many samples it took."""
        for name in ASSETS:
            port = self._stack.fleet.get(self._pilot.namespace, name).ops_port
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            (line,) = (
                each for each in text.splitlines() if each.startswith("derops_agent_samples_total")
            )
            self._lives[name][-1].looks.append((time.time(), int(float(line.split()[1]))))

    def _judge(self, names: dict[str, str]) -> None:
        """Wait until the dispatches have ended; compare status, device and database."""
        for asset, name in names.items():
            dispatch = eventually(partial(self._ended, name), f"{name} to end", PATIENCE_SECONDS)
            account = self._pilot.device_log(asset)
            self.report.dispatches += 1
            self.report.violations += judge(dispatch, account)
            if account and {key: account[-1][key] for key in DEFAULT} != DEFAULT:
                words = f"{asset} holds {account[-1]} though nothing runs"
                self._add("without owner", name, words)
            self._compare_history(dispatch)

    def _ended(self, name: str) -> dict[str, Any] | None:
        found = self._pilot.get("dispatch", name)
        return found if found.get("status", {}).get("phase") in TERMINAL else None

    def _compare_history(self, dispatch: dict[str, Any]) -> None:
        """The database follows, and says the same as the status."""
        name, status = dispatch["metadata"]["name"], dispatch["status"]
        told = (status["phase"], status["reason"], conditions(status)["Applied"] == "True")
        query = (
            "select phase, reason, coalesce(applied, false) from dispatch_history "
            "where dispatch_name = %s"
        )
        try:
            eventually(
                lambda: self._pilot.rows(query, name) == [told], f"{name} in the database", 60
            )
        except AssertionError:
            self._add("history", name, f"{self._pilot.rows(query, name)}, status: {told}")

    def _find_left_behind(self) -> None:
        """Compare the conditions of the assets with those of one that only this operator knows."""
        self._pilot.apply(battery_manifest(_NEW))
        self._pilot.wait_for_condition("derasset", _NEW, "Connected", "True")
        known = conditions(self._pilot.get("derasset", _NEW)["status"])
        for name in ASSETS:
            there = conditions(self._pilot.get("derasset", name)["status"])
            self.report.left_behind |= there.keys() - known.keys()

    def _compare_samples(self) -> None:
        """Wait until what was measured up to the last look is there, and count what is not."""
        for name in ASSETS:
            try:
                eventually(partial(self._is_whole, name), f"samples of {name}", 60)
            except AssertionError:
                self.report.lost += self._lost(name)
            self.report.samples += sum(
                life.looks[-1][1] for life in self._lives[name] if life.looks
            )
        for table in ("quarantine", "telemetry_gap"):
            if rows := self._pilot.rows(f"select * from {table}"):
                self._add(table, "", f"{len(rows)} rows, the first {rows[0]}")

    def _is_whole(self, name: str) -> bool:
        return not self._lost(name)

    def _lost(self, name: str) -> int:
        rows = self._pilot.rows(
            "select extract(epoch from ts)::float8 from telemetry join asset using (asset_id) "
            "where asset.name = %s",
            name,
        )
        stored = [at for (at,) in rows]
        lives = self._lives[name]
        return sum(find_lost(life, _until(stored, after)) for life, after in _pairs(lives))

    def _add(self, kind: str, name: str, words: str) -> None:
        self.report.violations.append(Violation(kind=kind, dispatch=name, words=words))


def _pairs(lives: Sequence[Life]) -> Iterator[tuple[Life, Life | None]]:
    yield from zip(lives, [*lives[1:], None], strict=True)


def _until(stored: Sequence[float], after: Life | None) -> list[float]:
    """Return the samples before the next process of the agent began."""
    return [at for at in stored if after is None or at <= after.since]
