"""``make demo``: the manifests in examples/ on the whole stack, and one order by REST."""

import json
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import yaml
from tests.stack import display, places
from tests.stack.calling import Caller
from tests.stack.display import View
from tests.stack.processes import StackError
from tests.stack.stack import Stack

EXAMPLES = places.REPOSITORY / "examples"
CALLERS = EXAMPLES / "rest" / "callers.yaml"

_PREFIX = "dispatch-"
_OUTCOMES = ("Complete", "Rejected", "Cancelled")
_LOOK_SECONDS = 0.5
_CONNECT_SECONDS = 60
_OUTCOME_SECONDS = 150
_ORDER_SECONDS = 5
_RECORD_SECONDS = 30
_MARGIN = timedelta(seconds=3)
_BEFORE_CANCEL = timedelta(seconds=5)
_SAMPLES = """
    select ts, active_power_watts, setpoint_watts from telemetry join asset using (asset_id)
    where namespace = %s and name = %s and ts between %s and %s order by ts
"""
_LATEST = """
    select distinct on (namespace, name) namespace, name, active_power_watts
    from telemetry join asset using (asset_id)
    where ts > now() - interval '1 minute' order by namespace, name, ts desc
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A Dispatch of examples/ whose file name says how it ends: dispatch-complete.yaml."""

    namespace: str
    name: str
    asset: str
    outcome: str


def _dispatch(view: View, example: Example) -> dict[str, Any]:
    wanted = (example.namespace, example.name)
    return next(
        (
            item
            for item in view.dispatches
            if (item["metadata"]["namespace"], item["metadata"]["name"]) == wanted
        ),
        {},
    )


def _status(view: View, example: Example) -> dict[str, Any]:
    status: dict[str, Any] = _dispatch(view, example).get("status", {})
    return status


def main() -> int:
    """Run the demonstration; return 0 when everything ended as its file says."""
    started = time.monotonic()
    try:
        with Stack(keep_alive=True, say=lambda text: print(text, flush=True)) as stack:
            missed = _run(stack, started)
    except KeyboardInterrupt:
        print("ended")
        return 0
    for line in missed:
        print(f"not as it should be: {line}", file=sys.stderr)
    return 1 if missed else 0


def _run(stack: Stack, started: float) -> list[str]:
    examples = _read_examples()
    print("applying examples/", flush=True)
    _apply(stack, dispatches=False)
    stack.kubectl(
        "wait", "--for=condition=Connected", "derassets", "--all", "-A",
        f"--timeout={_CONNECT_SECONDS}s",
    )  # fmt: skip
    _wait_for_telemetry(stack)
    _apply(stack, dispatches=True)
    with display.Screen() as screen:
        view = _follow(stack, examples, screen)
        missed = [
            f"{example.name} is {phase}, not {example.outcome}"
            for example in examples
            if (phase := _status(view, example).get("phase")) != example.outcome
        ]
        missed += _tell(stack, examples, view, screen)
        missed += _order_by_rest(stack, screen)
        screen.say(f"{time.monotonic() - started:.0f} s in all")
        if screen.interactive:
            screen.say(display.invitation(stack.kubeconfig, stack.control_plane.binaries.kubectl))
            while True:
                screen.show(_look(stack))
                time.sleep(_LOOK_SECONDS)
    return missed


def _read_examples() -> list[Example]:
    found = [
        _read_example(document, file.stem.removeprefix(_PREFIX).capitalize())
        for file in sorted(EXAMPLES.glob(f"{_PREFIX}*.yaml"))
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]
    found = [example for example in found if example.outcome in _OUTCOMES]
    if absent := set(_OUTCOMES) - {example.outcome for example in found}:
        raise StackError(f"examples/ has no dispatch that ends {', '.join(sorted(absent))}")
    return found


def _read_example(document: dict[str, Any], outcome: str) -> Example:
    return Example(
        namespace=document["metadata"].get("namespace", "default"),
        name=document["metadata"]["name"],
        asset=document["spec"]["assetRef"]["name"],
        outcome=outcome,
    )


def _apply(stack: Stack, *, dispatches: bool) -> None:
    """Apply one half of examples/: assets first, so that devices are connected when it begins."""
    for file in sorted(EXAMPLES.glob("*.yaml")):
        if file.name.startswith(_PREFIX) == dispatches:
            stack.kubectl("apply", "-f", str(file))


def _look(stack: Stack) -> View:
    listed = json.loads(
        stack.kubectl("get", "derassets.derops.io,dispatches.derops.io", "-A", "-o", "json")
    )["items"]
    with psycopg.connect(stack.database_url) as connection:
        rows = connection.execute(_LATEST).fetchall()
    return View(
        assets=[item for item in listed if item["kind"] == "DERAsset"],
        dispatches=[item for item in listed if item["kind"] == "Dispatch"],
        watts={(namespace, name): watts for namespace, name, watts in rows},
    )


def _wait_for_telemetry(stack: Stack) -> None:
    """Wait until the database has measurements of all assets, to compare what follows with."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while len((view := _look(stack)).watts) < len(view.assets):
        if time.monotonic() > deadline:
            raise StackError(f"no telemetry of all assets in the database: {view.watts}")
        time.sleep(_LOOK_SECONDS)


def _follow(stack: Stack, examples: list[Example], screen: display.Screen) -> View:
    """Show what happens until all examples have ended; cancel what is to be cancelled meanwhile."""
    to_cancel = [example for example in examples if example.outcome == "Cancelled"]
    deadline = time.monotonic() + _OUTCOME_SECONDS
    while True:
        view = _look(stack)
        screen.show(view)
        for example in [each for each in to_cancel if _has_run_a_while(_status(view, each))]:
            to_cancel.remove(example)
            screen.say(f"cancelling {example.namespace}/{example.name} while it runs")
            stack.kubectl(
                "patch", "dispatch", example.name, "-n", example.namespace, "--type=merge",
                "-p", '{"spec":{"desiredState":"Cancelled"}}',
            )  # fmt: skip
        ended = [_status(view, example).get("completionTime") for example in examples]
        if all(ended) or time.monotonic() > deadline:
            return view
        time.sleep(_LOOK_SECONDS)


def _has_run_a_while(status: dict[str, Any]) -> bool:
    applied = status.get("timeline", {}).get("appliedAt")
    return applied is not None and datetime.now(UTC) > _instant(applied) + _BEFORE_CANCEL


def _tell(stack: Stack, examples: list[Example], view: View, screen: display.Screen) -> list[str]:
    """Print each outcome, and the measured power around the completed setpoint."""
    for example in examples:
        screen.say(display.outcome(example.name, _status(view, example)))
    example = next(each for each in examples if each.outcome == "Complete")
    status = _status(view, example)
    timeline = status.get("timeline", {})
    if "appliedAt" not in timeline or "endedAt" not in timeline:
        return [f"{example.name} has no appliedAt and endedAt"]
    applied, ended = (_instant(timeline[key]) for key in ("appliedAt", "endedAt"))
    threading.Event().wait(max(0.0, (ended + _MARGIN - datetime.now(UTC)).total_seconds() + 1))
    with psycopg.connect(stack.database_url) as connection:
        samples = connection.execute(
            _SAMPLES, (example.namespace, example.asset, applied - _MARGIN, ended + _MARGIN)
        ).fetchall()
    screen.say(display.power(example.asset, samples))
    wanted = status.get("execution", {}).get("applied", {}).get("watts", 0)
    if not any(watts and abs(watts - wanted) <= abs(wanted) * 0.1 for _, watts, _ in samples):
        return [f"the database has no sample of {example.asset} near {wanted} W"]
    return []


def _order_by_rest(stack: Stack, screen: display.Screen) -> list[str]:
    """Order one dispatch as a trading system would, and ask who ordered it."""
    stack.kubectl("apply", "-f", str(CALLERS))
    with (
        closing(stack.caller("derops-callers", "trading")) as trading,
        closing(stack.caller("derops-callers", "auditor")) as auditor,
    ):
        made = trading.order(
            "pilot-north",
            "demo",
            asset="battery-7",
            setpoint={"mode": "ActivePower", "activePowerWatts": 3000},
            durationSeconds=_ORDER_SECONDS,
        )
        screen.say(f"\n{made['name']} is ordered by REST")
        example = Example(
            namespace="pilot-north", name=made["name"], asset="battery-7", outcome="Complete"
        )
        status = _status(_follow(stack, [example], screen), example)
        screen.say(display.outcome(example.name, status))
        records = _records(auditor, made["requestId"])
    screen.say(f"ordered by {status.get('createdBy')}, call {made['requestId']}; the audit has")
    for each in records:
        screen.say(display.record(each))
    missed = []
    if status.get("phase") != example.outcome:
        missed.append(f"{example.name} is {status.get('phase')}, not {example.outcome}")
    if not status.get("createdBy", "").endswith(":derops-callers:trading"):
        missed.append(f"{example.name} was ordered by {status.get('createdBy')}, not by trading")
    if not any(each.get("objectUid") == made["uid"] for each in records):
        missed.append(f"the audit has no record of {example.name}")
    return missed


def _records(auditor: Caller, request_id: str) -> list[dict[str, Any]]:
    """Return what the audit has of one call, once that is in the database."""
    deadline = time.monotonic() + _RECORD_SECONDS
    while True:
        answer = auditor.get("/v1/namespaces/pilot-north/audit", requestId=request_id)
        records = [each["record"] for each in reversed(answer["items"])]
        if len(records) > 1 or time.monotonic() > deadline:
            return records
        time.sleep(_LOOK_SECONDS)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
