"""Pods deleted and the node killed in mid-dispatch: the status is true at the end.

Each dispatch has a value that no other one has, so that the device's account tells them apart.
"""

import itertools
import secrets
import time

import pytest
from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.cluster.figures import say
from tests.cluster.pods import delete_pod, wait_for_new_life
from tests.cluster.proving import assert_true
from tests.cluster.site import Site, agent_pod
from tests.e2e.acting import parse
from tests.kills.judging import Stay
from tests.waiting import eventually

from derops.schedules import SECOND_US

PARTS = ("operator", "headend", "database", "api")
READY_LIMIT_SECONDS = 10
_values = itertools.count(3000, 50)
_names = itertools.count(1)
_HOME = f"disturbed-{secrets.token_hex(3)}"
"""Of this run: dispatches and values of one before, on what was kept, are others."""


@pytest.fixture
def home(cluster: Cluster) -> Site:
    """Return one namespace with a battery for all tests of this file."""
    home = Site(cluster, _HOME)
    home.create_namespace()
    home.battery()
    return home


def run(home: Site, seconds: int) -> str:
    """Start a dispatch with a value of its own and return its name once it is Active."""
    name = f"through-{next(_names)}"
    setpoint = {"mode": "ActivePower", "activePowerWatts": next(_values)}
    home.dispatch(name, setpoint=setpoint, durationSeconds=seconds)
    home.wait_for_phase(name, "Active")
    return name


def test_undisturbed_it_completes_and_is_true(home: Site) -> None:
    name = run(home, 20)

    home.wait_for_phase(name, "Complete")

    assert_true(home, name)


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
@pytest.mark.parametrize("part", PARTS)
def test_a_pod_deleted_in_mid_dispatch(home: Site, part: str, *, force: bool) -> None:
    name = run(home, 25)

    seconds = delete_pod(home.cluster, part, installing.NAMESPACE, force=force)
    say(f"ready_after_{'force' if force else 'plain'}_{part}", seconds, "s", READY_LIMIT_SECONDS)
    status = home.wait_for_phase(name, "Complete")

    assert status["execution"]["interruptions"] == 0
    assert_true(home, name)


@pytest.mark.parametrize("part", PARTS)
def test_a_dispatch_ends_on_time_while_a_part_is_away(home: Site, part: str) -> None:
    workload = dict(zip(PARTS, installing.WORKLOADS, strict=True))[part]
    name = run(home, 12)

    home.cluster.kubectl("scale", workload, "--replicas=0", "-n", installing.NAMESPACE)
    eventually(lambda: home.powers_written()[-1] == 0, "the device's release")
    home.cluster.kubectl("scale", workload, "--replicas=1", "-n", installing.NAMESPACE)
    timeline = home.wait_for_phase(name, "Complete")["timeline"]

    late = parse(timeline["revertedAt"]) - parse(timeline["plannedEnd"])
    assert abs(late.total_seconds()) < 1.5
    assert_true(home, name)
    installing.wait_until_ready(home.cluster)


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
def test_an_agents_pod_deleted_in_mid_dispatch(home: Site, *, force: bool) -> None:
    name = run(home, 40)
    ran = _process_started(home)

    gone = time.time()
    seconds = delete_pod(home.cluster, "agent", home.namespace, force=force)
    say(f"ready_after_{'force' if force else 'plain'}_agent", seconds, "s", READY_LIMIT_SECONDS)
    assert _process_started(home) != ran
    silence = Stay(from_us=int(gone * SECOND_US), until_us=int((time.time() + 3) * SECOND_US))
    home.wait_for_phase(name, "Complete")

    assert_true(home, name, lives_lost=1, silences=[silence])


def test_all_pods_at_once_in_mid_dispatch(home: Site) -> None:
    name = run(home, 40)

    gone = time.time()
    home.cluster.kubectl(
        "delete", "pods", "--all", "-n", installing.NAMESPACE, "--force", "--grace-period=0"
    )
    for part in PARTS:
        wait_for_new_life(home.cluster, part, installing.NAMESPACE, gone)
    say("ready_after_force_all", time.time() - gone, "s", READY_LIMIT_SECONDS)
    home.wait_for_phase(name, "Complete")

    assert_true(home, name)


def test_the_node_killed_in_mid_dispatch(home: Site) -> None:
    if home.cluster.kind is None:
        pytest.skip("this cluster's node is not ours to switch off")
    name = run(home, 150)
    eventually(lambda: _held_seconds(home, name) > 3, "some seconds of it")

    gone = time.time()
    home.cluster.kill_node()
    home.cluster.start_node()
    for part in PARTS:
        wait_for_new_life(home.cluster, part, installing.NAMESPACE, gone)
    wait_for_new_life(home.cluster, "agent", home.namespace, gone)
    back = time.time()
    say("all_ready_after_node_kill", back - gone, "s", 120)
    home.wait_for_phase(name, "Complete", patience_seconds=180)

    silence = Stay(from_us=int((gone - 1) * SECOND_US), until_us=int((back + 3) * SECOND_US))
    assert_true(home, name, lives_lost=1, silences=[silence])


def _process_started(home: Site) -> str:
    """Return something that each process of the agent has its own of."""
    (pod,) = home.cluster.items(
        "pods", "-n", home.namespace, "--field-selector", f"metadata.name={agent_pod('battery')}"
    )
    uid: str = pod["metadata"]["uid"]
    return uid


def _held_seconds(home: Site, name: str) -> float:
    """Return for how long a dispatch has been on its device."""
    applied = parse(home.status(name)["timeline"]["appliedAt"])
    return time.time() - applied.timestamp()
