"""Rounds on the whole product: dispatches run, one process is killed, all must end true."""

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.acting import TERMINAL, Pilot, battery_manifest, instant
from tests.kills.judging import DEFAULT, Violation, judge, watts_of
from tests.waiting import eventually

PARTS = ("operator", "gateway", "agent")
ASSETS = ("battery-0", "battery-1", "battery-2")
_MODES = ("ActivePower", "ActivePower", "GenerationLimit")
PATIENCE_SECONDS = 90
LONGEST_WINDOW_SECONDS = 4
_UNDISTURBED = 1_000_000
"""A number that no round has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One round as data: a seed gives the same plans again."""

    number: int
    part: str
    asset: str
    """Whose agent it is, where an agent is killed."""

    after_seconds: float
    """From the creation of the dispatches to the kill."""

    away_seconds: float
    specs: tuple[dict[str, Any], ...]


@dataclass(slots=True)
class Report:
    """What the rounds came to."""

    seed: int
    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    applied: int = 0
    """Dispatches that were on their device."""

    running_at_the_kill: int = 0
    """Dispatches that were on their device when the process was killed."""

    longest_seconds: float = 0.0
    """From the creation of a round's dispatches to the end of the last."""

    violations: list[Violation] = field(default_factory=list)

    def shortfalls(self, rounds: int) -> list[str]:
        """Return in what so many rounds did too little to say that kills break no promise."""
        done = {
            **{f"kills of {part}": self.kills[part] for part in PARTS},
            "rounds": self.rounds,
            "dispatches": self.endings.total(),
            "applied": self.applied,
            "completed": self.endings["Complete/WindowEnded"],
            "running_at_the_kill": self.running_at_the_kill,
        }
        least = {
            **{f"kills of {part}": rounds // len(PARTS) for part in PARTS},
            "rounds": rounds,
            "dispatches": rounds * len(ASSETS) * len(_MODES),
            "applied": rounds * len(ASSETS),
            "completed": rounds,
            "running_at_the_kill": rounds // 2,
        }
        return [
            f"{what}: {done[what]}, fewer than {number}"
            for what, number in least.items()
            if done[what] < number
        ]

    def line(self) -> str:
        """Return it as JSON."""
        kinds = Counter(each.kind for each in self.violations)
        return json.dumps(
            {
                "seed": self.seed,
                "rounds": self.rounds,
                "kills": dict(sorted(self.kills.items())),
                "dispatches": self.endings.total(),
                "endings": dict(self.endings.most_common()),
                "applied": self.applied,
                "running_at_the_kill": self.running_at_the_kill,
                "longest_seconds": round(self.longest_seconds, 1),
                "applied_twice": kinds["applied twice"],
                "without_owner": kinds["without owner"],
                "untrue": kinds["untrue"] + kinds["unknown"] + kinds["history"],
                "violations": len(self.violations),
                "first": [str(each) for each in self.violations[:5]],
            }
        )


def plan(rounds: int, seed: int) -> list[Plan]:
    """Return the rounds: each part in turn, moments and dispatches by chance."""
    chance = random.Random(seed)
    return [
        Plan(
            number=number,
            part=PARTS[number % len(PARTS)],
            asset=chance.choice(ASSETS),
            after_seconds=chance.uniform(0, LONGEST_WINDOW_SECONDS),
            away_seconds=chance.choice([0.0, chance.uniform(0, 4)]),
            specs=tuple(_specs(number, chance)),
        )
        for number in range(rounds)
    ]


def _specs(number: int, chance: random.Random) -> list[dict[str, Any]]:
    """Return three dispatches for each asset: two of one mode that may meet, and a limit."""
    specs = []
    for asset in ASSETS:
        # A value of its own for each: the account of a device knows values, not names.
        watts = 1000 + 10 * number
        for index, mode in enumerate(_MODES):
            setpoint = (
                {"mode": mode, "activePowerWatts": watts + index}
                if mode == "ActivePower"
                else {"mode": mode, "maxGenerationWatts": watts + index}
            )
            specs.append(
                {
                    "assetRef": {"name": asset},
                    "setpoint": setpoint,
                    "startSeconds": chance.uniform(0, 3) if index else 0,
                    "durationSeconds": chance.randint(1, LONGEST_WINDOW_SECONDS),
                    "startDeadlineSeconds": 60,
                    "latePolicy": chance.choice(["KeepDuration", "KeepDuration", "KeepEnd"]),
                    "primacy": chance.choice([50, 100]),
                    "reportDeadlineSeconds": 300,
                }
            )
    return specs


class Rounds:
    """Plays plans on one namespace with a few batteries."""

    def __init__(self, pilot: Pilot, seed: int) -> None:
        self._pilot = pilot
        self.report = Report(seed)

    def begin(self) -> None:
        """Create the assets and wait for their agents."""
        self._pilot.apply_all([battery_manifest(name) for name in ASSETS])
        for name in ASSETS:
            self._pilot.wait_for_condition("derasset", name, "Connected", "True")

    def play_undisturbed(self) -> list[str]:
        """Let a dispatch of each asset run, kill nothing, and return what is wrong then.

        A kill proves nothing where dispatches do not complete without one.
        """
        specs = [
            {
                "assetRef": {"name": asset},
                "setpoint": {"mode": "ActivePower", "activePowerWatts": 500},
                "startSeconds": 1,
                "durationSeconds": 3,
                "startDeadlineSeconds": 60,
            }
            for asset in ASSETS
        ]
        plan = Plan(
            number=_UNDISTURBED,
            part="",
            asset="",
            after_seconds=0.0,
            away_seconds=0.0,
            specs=tuple(specs),
        )
        self._create(plan)
        self._end(plan)
        report, self.report = self.report, Report(self.report.seed)
        wrong = [str(each) for each in report.violations]
        if (report.endings, report.applied) != ({"Complete/WindowEnded": len(ASSETS)}, len(ASSETS)):
            wrong.append(f"not all completed: {report.line()}")
        return wrong

    def play(self, plan: Plan) -> None:
        """Let the dispatches of a round run into a kill, and judge what became of them."""
        started = time.monotonic()
        self._create(plan)
        time.sleep(max(0.0, started + plan.after_seconds - time.monotonic()))
        self._kill(plan)
        self.report.running_at_the_kill += self._count_running(plan)
        time.sleep(plan.away_seconds)
        self._restart(plan)
        self._end(plan)
        self.report.longest_seconds = max(self.report.longest_seconds, time.monotonic() - started)
        self.report.rounds += 1

    def _end(self, plan: Plan) -> None:
        ended = eventually(self._all_ended, f"round {plan.number} to end", PATIENCE_SECONDS)
        self._judge(plan, ended)
        self._pilot.stack.kubectl("delete", "dispatches", "--all", "-n", self._pilot.namespace)

    def _create(self, plan: Plan) -> None:
        items = [
            {
                "apiVersion": "derops.io/v1alpha1",
                "kind": "Dispatch",
                "metadata": {"name": f"round-{plan.number}-{index}"},
                "spec": {
                    **{key: value for key, value in spec.items() if key != "startSeconds"},
                    "startTime": instant(spec["startSeconds"]),
                },
            }
            for index, spec in enumerate(plan.specs)
        ]
        self._pilot.apply_all(items)

    def _kill(self, plan: Plan) -> None:
        stack = self._pilot.stack
        if plan.part == "agent":
            stack.kill_agent(self._pilot.namespace, plan.asset)
        else:
            stack.kill(plan.part)
        self.report.kills[plan.part] += 1

    def _restart(self, plan: Plan) -> None:
        stack = self._pilot.stack
        if plan.part == "agent":
            stack.restart_agent(self._pilot.namespace, plan.asset)
        else:
            stack.restart(plan.part)

    def _count_running(self, plan: Plan) -> int:
        values = {watts_of(spec["setpoint"]) for spec in plan.specs}
        lasts = [self._pilot.device_log(asset)[-1:] for asset in ASSETS]
        return sum(
            entry[column] in values
            for last in lasts
            for entry in last
            for column in ("active_power_watts", "max_generation_watts")
        )

    def _all_ended(self) -> Sequence[dict[str, Any]] | None:
        answer = self._pilot.stack.kubectl(
            "get", "dispatches", "-n", self._pilot.namespace, "-o", "json"
        )
        found: list[dict[str, Any]] = json.loads(answer)["items"]
        ended = all(each.get("status", {}).get("phase") in TERMINAL for each in found)
        return found if ended else None

    def _judge(self, plan: Plan, ended: Sequence[dict[str, Any]]) -> None:
        accounts = {asset: self._pilot.device_log(asset) for asset in ASSETS}
        for dispatch in ended:
            status = dispatch["status"]
            self.report.endings[f"{status['phase']}/{status['reason']}"] += 1
            self.report.applied += "appliedAt" in status.get("timeline", {})
            account = accounts[dispatch["spec"]["assetRef"]["name"]]
            self.report.violations += judge(dispatch, account)
        for asset, account in accounts.items():
            held = {key: account[-1][key] for key in DEFAULT} if account else DEFAULT
            if held != DEFAULT:
                words = f"{asset} holds {held} after round {plan.number}"
                self.report.violations.append(
                    Violation(kind="without owner", dispatch="", words=words)
                )
