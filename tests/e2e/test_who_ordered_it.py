"""Who ordered a dispatch, from the API server's policies through the operator into the database."""

import json

import pytest
from tests.e2e.acting import Pilot, instant, parse
from tests.stack import ops
from tests.stack.identities import install_creator_policies
from tests.stack.processes import StackError
from tests.waiting import eventually

ANNOTATION = "derops.io/created-by"
ADMIN, TRADER = "derops-admin", "system:serviceaccount:robots:trader"
SETTLING_SECONDS = 12


def wait_until_believed(pilot: Pilot) -> None:
    """Wait until the policies are old enough for what is made now to be believed."""
    kinds = "validatingadmissionpolicy,validatingadmissionpolicybinding"
    listed = json.loads(pilot.stack.kubectl("get", kinds, "-o", "json"))["items"]
    created = max(
        parse(each["metadata"]["creationTimestamp"])
        for each in listed
        if each["metadata"]["name"] == "derops-creator"
    )
    eventually(
        lambda: (parse(instant(0)) - created).total_seconds() > SETTLING_SECONDS, "their age"
    )


def order(pilot: Pilot, name: str, user: str = ADMIN, said: str = "cfo") -> None:
    """Order in somebody's name, whoever does it; it starts in an hour."""
    manifest = {
        "apiVersion": "derops.io/v1alpha1",
        "kind": "Dispatch",
        "metadata": {
            "name": name, "namespace": pilot.namespace, "annotations": {ANNOTATION: said}
        },
        "spec": {
            "assetRef": {"name": "battery"},
            "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
            "startTime": instant(3600),
            "durationSeconds": 60,
        },
    }  # fmt: skip
    identity = [] if user == ADMIN else [f"--as={user}", "--as-group=system:masters"]
    pilot.stack.kubectl("create", "-f", "-", *identity, stdin=json.dumps(manifest))


def told(pilot: Pilot, name: str) -> str:
    creator: str = eventually(lambda: pilot.status(name).get("createdBy"), f"who ordered {name}")
    return creator


def stored(pilot: Pilot, name: str, phase: str) -> str:
    """Return who ordered it by the step that led to a phase, as the database has it."""
    query = "select created_by from dispatch_event where dispatch_name = %s and phase = %s"
    ((creator,),) = eventually(lambda: pilot.rows(query, name, phase), f"{name} to be {phase}")
    return str(creator)


@pytest.mark.timeout(600)
def test_who_ordered_it_is_told_once_and_stays(pilot: Pilot) -> None:
    pilot.battery(connected=False)
    wait_until_believed(pilot)
    operator = pilot.stack.parts["operator"]

    order(pilot, "by-admin")
    order(pilot, "by-trader", TRADER)

    assert [told(pilot, name) for name in ("by-admin", "by-trader")] == [ADMIN, TRADER]
    assert stored(pilot, "by-trader", "Submitted") == TRADER
    shown = pilot.stack.kubectl("get", "dispatches", "-n", pilot.namespace, "-o", "wide")
    assert "CREATOR" in shown
    assert TRADER in shown

    for kind in ("validating", "mutating"):
        pilot.stack.kubectl("delete", f"{kind}admissionpolicybinding", "derops-creator")
    try:
        operator.terminate()
        eventually(lambda: forged(pilot, "by-trader"), "a change that no policy refuses")
        pilot.stack.restart("operator")
        pilot.cancel("by-trader")
        pilot.wait_for_phase("by-trader", "Cancelled")
        order(pilot, "forged")

        assert told(pilot, "by-trader") == TRADER
        assert stored(pilot, "by-trader", "Cancelled") == TRADER
        assert told(pilot, "forged") == "unknown"
        assert stored(pilot, "forged", "Submitted") == "unknown"
        assert "degraded who ordered a dispatch" in ops.ask(pilot.stack.ops_ports["operator"])[1]
    finally:
        install_creator_policies(pilot.stack.control_plane)
    operator.wait_until(
        lambda: "who ordered a dispatch" not in ops.ask(pilot.stack.ops_ports["operator"])[1], 60
    )


def forged(pilot: Pilot, name: str) -> bool:
    """Write another name into the annotation; return whether it stands there."""
    patch = json.dumps({"metadata": {"annotations": {ANNOTATION: "cfo"}}})
    try:
        pilot.stack.kubectl(
            "patch", "dispatch", name, "-n", pilot.namespace, "--type=merge", "-p", patch
        )
    except StackError:
        return False
    annotations: dict[str, str] = pilot.get("dispatch", name)["metadata"]["annotations"]
    return annotations[ANNOTATION] == "cfo"
