"""A client that repeats its call at each failure, and what the device was written: once each.

The client knows nothing but its Idempotency-Key. Between it, two replicas of the API and the API
server, connections are cut and the replicas are killed, at random moments of its calls.
DEROPS_EXAMPLES is how many orders each of two clients places, DEROPS_SEED which faults they meet.
"""

import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.cutting import CutProxy
from tests.api.repeating import Caller, restart
from tests.api.rig import ApiProcess, make_tenant, problem
from tests.e2e.acting import Pilot
from tests.e2e.modbus import Bus, controlled, profiled_bus, sunspec_bus
from tests.stack.postgres import API
from tests.stack.stack import Stack
from tests.waiting import eventually

EXAMPLES = int(os.environ.get("DEROPS_EXAMPLES") or 3)
SEED = int(os.environ.get("DEROPS_SEED") or 1)
PATIENCE = 240
CALL_SECONDS = 0.15
"""About as long as a call takes: when in it something breaks is left to chance."""

pytestmark = pytest.mark.timeout(900 + 60 * EXAMPLES)


class Site:
    """Two replicas of the API behind proxies, beside the stack, and devices on Modbus."""

    def __init__(self, stack: Stack, directory: Path, opened: ExitStack) -> None:
        self.stack = stack
        self.pilot = Pilot(stack, "one-execution")
        self._token = make_tenant(stack.control_plane, self.pilot.namespace).token("dispatcher")
        opened.callback(self.pilot.delete_everything)
        self.kubernetes = opened.enter_context(CutProxy(stack.control_plane.server))
        config = self.kubernetes.kubeconfig(stack.parts["api"].environment["KUBECONFIG"], directory)
        url = stack.postgres.url("derops", API)
        self.replicas = [
            opened.enter_context(
                ApiProcess(directory / name, config, url, {"DEROPS_API_REPLICA": name})
            )
            for name in ("other-0", "other-1")
        ]
        self.fronts = [opened.enter_context(CutProxy(each.url)) for each in self.replicas]
        self.devices: dict[str, Bus] = {
            name: opened.enter_context(controlled(self.pilot, bus, name))
            for name, bus in (("profiled", profiled_bus()), ("sunspec", sunspec_bus()))
        }
        self._opened = opened
        self._breaking = threading.Lock()

    def caller(self, asset: str, key: str, watts: int) -> Caller:
        """Return a client with an order of 2 s, which may start late."""
        order = {
            "asset": asset,
            "setpoint": {"mode": "ActivePower", "activePowerWatts": watts},
            "durationSeconds": 2,
            "startDeadlineSeconds": 600,
            "latePolicy": "KeepDuration",
        }
        made = Caller(
            self._token,
            self.pilot.namespace,
            order,
            key,
            database_url=self.stack.database_url,
            kube=self.stack.control_plane,
        )
        self._opened.callback(made.close)
        return made

    def break_something(self, chance: random.Random) -> None:
        """Kill a replica and start it again, or cut off what is on its way to it or from it."""
        replica, pause = chance.choice((0, 1)), chance.uniform(0, CALL_SECONDS)
        with self._breaking:
            if chance.random() < 0.4:
                self.replicas[replica].process.kill()
                restart(self.replicas[replica])
                return
            way = chance.choice((self.kubernetes, self.fronts[replica]))
            way.hold()
            if chance.random() < 0.5:
                way.pass_to_server()  # it is done, and nobody hears of it
            time.sleep(pause)
            way.cut()
            way.pass_on()

    def repeat(self, caller: Caller, failures: list[str]) -> httpx.Response:
        """Call, now here, now there, until an answer says that it is done."""
        deadline = time.monotonic() + PATIENCE
        for replica in itertools.cycle((0, 1)):
            assert time.monotonic() < deadline, failures
            try:
                answer = caller.call(f"http://127.0.0.1:{self.fronts[replica].port}")
            except httpx.TransportError as error:
                failures.append(type(error).__name__)
                continue
            if answer.status_code in (200, 201):
                return answer
            failures.append(answer.json()["type"].rpartition("/")[2])
            time.sleep(0.1)
        raise AssertionError

    def end_by_ttl(self, callers: list[Caller]) -> None:
        """Have the operator delete what has ended."""
        for each in callers:
            self.stack.kubectl(
                "patch", "dispatch", each.name, "-n", self.pilot.namespace, "--type=merge",
                "-p", '{"spec":{"ttlSecondsAfterFinished":1}}',
            )  # fmt: skip
        eventually(lambda: not any(each.exists for each in callers))
        names = {each.name for each in callers}
        deletions = {
            event["objectRef"]["name"]: event["user"]["username"].rpartition(":")[2]
            for event in self._events()
            if event["verb"] == "delete" and event["objectRef"].get("name") in names
        }
        assert deletions == dict.fromkeys(names, "derops-operator")

    def _events(self) -> list[dict[str, Any]]:
        events: list[Any] = self.stack.control_plane.audit_events()
        return events


@pytest.fixture(scope="module")
def site(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as opened:
        yield Site(stack, tmp_path_factory.mktemp("site"), opened)


@contextmanager
def without_writer(stack: Stack) -> Iterator[None]:
    stack.kill("writer")
    try:
        yield
    finally:
        stack.restart("writer")


def orders_of(site: Site, asset: str, first_watts: int) -> list[tuple[Caller, int]]:
    powers = [first_watts + 10 * number for number in range(EXAMPLES)]
    return [(site.caller(asset, f"{asset}-{watts}", watts), watts) for watts in powers]


def place(
    site: Site, asset: str, orders: list[tuple[Caller, int]], failures: list[str]
) -> list[httpx.Response]:
    """Order one after another, with faults in each call, and let each come to its end."""
    chance, answers = random.Random(f"{SEED} {asset}"), []
    with ThreadPoolExecutor(1) as pool:
        for caller, _ in orders:
            answer: Future[httpx.Response] = pool.submit(site.repeat, caller, failures)
            for _ in range(chance.choice((1, 2, 3))):
                time.sleep(chance.uniform(0, CALL_SECONDS))
                site.break_something(chance)
            answers.append(answer.result())
            site.pilot.wait_for_phase(caller.name, "Complete", patience_seconds=PATIENCE)
    return answers


def test_each_key_is_one_dispatch_and_one_execution_at_the_device(site: Site) -> None:
    orders = {
        "profiled": orders_of(site, "profiled", 1000),
        "sunspec": orders_of(site, "sunspec", 1000),
    }
    failures: list[str] = []
    before = {asset: list(site.devices[asset].look().powers) for asset in orders}
    with without_writer(site.stack), ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda asset: place(site, asset, orders[asset], failures), orders))

    again = [
        [caller.call(api.url) for api in site.replicas for caller, _ in each]
        for each in orders.values()
    ]

    assert failures, "nothing ever failed: the clients had nothing to repeat"
    for asset, answered, repeated in zip(orders, answers, again, strict=True):
        callers, powers = zip(*orders[asset], strict=True)
        uids = [each.json()["uid"] for each in answered]
        assert [each.creates for each in callers] == [1] * EXAMPLES
        assert {each.status_code for each in repeated} == {200}
        assert [each.json()["uid"] for each in repeated] == uids * 2
        written = site.devices[asset].look().powers
        assert written == before[asset] + [watts for power in powers for watts in (power, 0)]
    listed = site.stack.kubectl("get", "dispatches", "-n", site.pilot.namespace, "-o", "name")
    assert len(listed.split()) == 2 * EXAMPLES


def test_what_its_ttl_deleted_is_not_done_again(site: Site) -> None:
    device = site.devices["profiled"]
    before = list(device.look().powers)
    answered = site.caller("profiled", "answered", 2000)
    unanswered = site.caller("profiled", "unanswered", 2010)
    doomed, other = site.replicas

    with without_writer(site.stack):
        assert answered.insist(other).status_code == 201
        site.pilot.wait_for_phase(answered.name, "Complete")
        with unanswered.held(doomed, site.kubernetes) as lost:
            site.kubernetes.pass_to_server()
            eventually(lambda: unanswered.exists)
            doomed.process.kill()
            site.kubernetes.cut()
        site.kubernetes.pass_on()
        assert isinstance(lost.exception(), httpx.TransportError)
        site.pilot.wait_for_phase(unanswered.name, "Complete")
        site.end_by_ttl([answered, unanswered])
        restart(doomed)

        for api in site.replicas:
            for caller in (answered, unanswered):
                problem(caller.insist(api), 409, "idempotency-key-expired")
    assert [answered.creates, unanswered.creates] == [1, 1]
    assert not answered.exists
    assert not unanswered.exists
    assert device.look().powers == [*before, 2000, 0, 2010, 0]
