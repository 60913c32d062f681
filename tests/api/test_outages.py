"""Kubernetes, database and audit away, from one API that runs through all of it.

What needs what is away is answered 503, says what is missing and when to try again; the other half
goes on, and all of it comes back without a restart.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.auditing.disks import small_disk
from tests.api.cutting import CutProxy
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.manifests import BATTERY, merged
from tests.stack import ops
from tests.stack.controlplane import ControlPlane

NAMESPACE = "outages"
PATH = f"/v1/namespaces/{NAMESPACE}"
ORDER: dict[str, Any] = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
KUBERNETES, DATABASE, AUDIT = "kubernetes", "database", "audit"
OF_KUBERNETES = ("dispatches/doomed", "order", "cancel")
OF_DATABASE = ("history", "assets/battery-7/telemetry")
OF_MEMORY = ("me", "assets", "assets/battery-7")
"""What is known without either for a while, rights included."""

CALLS = (*OF_MEMORY, *OF_KUBERNETES, *OF_DATABASE)
PATIENCE_SECONDS = 90
pytestmark = pytest.mark.timeout(600)


class Running:
    """One API between what can be taken away from it, and its callers."""

    def __init__(
        self,
        kube: ControlPlane,
        config: str,
        urls: tuple[str, str],
        directory: Path,
        opened: ExitStack,
    ) -> None:
        owner_url, api_url = urls
        self.database_url, self._kube = owner_url, kube
        self._tenant: Tenant = make_tenant(kube, NAMESPACE)
        kube.apply(merged(BATTERY, {"metadata": {"namespace": NAMESPACE}}))
        self.kubernetes = opened.enter_context(CutProxy(kube.server))
        self.database = opened.enter_context(CutProxy(api_url))
        (directory / "api").mkdir()
        self._disk = opened.enter_context(small_disk(directory / "api" / "audit", megabytes=2))
        self.api: ApiProcess = opened.enter_context(
            ApiProcess(
                directory / "api",
                self.kubernetes.kubeconfig(config, directory),
                by_port(api_url, self.database.port),
            )
        )
        self._client = opened.enter_context(self.api.client(self._tenant.token("dispatcher")))
        self.doomed: list[str] = []
        """Names of Dispatches that were not cancelled yet."""
        self.ordered: set[str] = set()
        """Names of all Dispatches, by what was answered."""
        self.recorded: dict[str, str] = {}
        """Requests that were answered by anything else than that there is no audit, and how."""

    @contextmanager
    def without(self, *parts: str) -> Iterator[None]:
        """Take parts away, and give them back."""
        if KUBERNETES in parts:
            self.kubernetes.take_away()
        if DATABASE in parts:
            self.database.take_away()
        if AUDIT in parts:
            self._fill()
        try:
            yield
        finally:
            self.kubernetes.pass_on()
            self.database.pass_on()
            (self._disk / "filler").unlink(missing_ok=True)

    def _fill(self) -> None:
        with suppress(OSError), (self._disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass

    def call(self, what: str, key: str) -> httpx.Response:
        """Make one call; an order has a key, and a cancel is of what is not cancelled yet."""
        answer: httpx.Response
        match what:
            case "order":
                answer = self._client.post(
                    f"{PATH}/dispatches", json=ORDER, headers={"Idempotency-Key": key}
                )
                if answer.status_code == 201:
                    self.doomed.append(answer.json()["name"])
                    self.ordered.add(answer.json()["name"])
            case "cancel":
                answer = self._client.post(f"{PATH}/dispatches/{self.doomed[-1]}/cancel")
                if answer.status_code == 200:
                    self.doomed.pop()
            case "dispatches/doomed":
                answer = self._client.get(f"{PATH}/dispatches/{self.doomed[0]}")
            case "me":
                answer = self._client.get("/v1/me")
            case _:
                answer = self._client.get(f"{PATH}/{what}")
        if "audit-unavailable" not in answer.text:
            told = f"{what}: {answer.status_code} {answer.text[:60]}"
            self.recorded[answer.headers["x-request-id"]] = told
        return answer

    def call_all(self, key: str) -> dict[str, httpx.Response]:
        return {each: self.call(each, key) for each in CALLS}

    def comes_back(self, key: str) -> None:
        """Repeat each call until it is answered well; the order is made by what was refused."""
        for what in CALLS:
            eventually(partial(self._is_good, what, key))
        eventually(lambda: self.ready[0] == 200 and self.ready[1].startswith("ok"))

    def _is_good(self, what: str, key: str) -> bool:
        return self.call(what, key).status_code in (200, 201)

    def stranger(self) -> httpx.Response:
        """Call with a good token that the API has not seen."""
        with self.api.client(self._tenant.token("viewer")) as client:
            return client.get("/v1/me")

    @property
    def ready(self) -> tuple[int, str]:
        return ops.ask(self.api.ops_port)

    def dispatches(self) -> list[str]:
        """Return the names of all Dispatches, as the API server has them."""
        listed = self._kube.kubectl("get", "dispatches", "-n", NAMESPACE, "-o", "name")
        return [each.rpartition("/")[2] for each in listed.split()]

    def desired_state(self, name: str) -> str:
        path = "jsonpath={.spec.desiredState}"
        return self._kube.kubectl("get", "dispatch", name, "-n", NAMESPACE, "-o", path)

    def records(self) -> dict[str, int]:
        """Return how often each request that has to be is recorded as answered."""
        with psycopg.connect(self.database_url) as connection:
            return dict(
                connection.execute(
                    "select request_id, count(*) from audit_event where request_id = any(%s) "
                    "and stage = 'ResponseComplete' group by 1",
                    (list(self.recorded),),
                ).fetchall()
            )


def by_port(url: str, port: int) -> str:
    """Return a database's URL by another port."""
    before, _, after = url.rpartition("@")
    return f"{before}@127.0.0.1:{port}/{after.partition('/')[2]}"


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def refusals(answers: dict[str, httpx.Response]) -> dict[str, str]:
    """Return what is missing, of each call that was refused; each must be as all are."""
    found = {}
    for what, answer in answers.items():
        if answer.status_code < 300:
            continue
        slug = answer.json()["type"].rpartition("/")[2]
        body = problem(answer, 503, slug)
        assert body["detail"]
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        found[what] = slug.removesuffix("-unavailable")
    return found


@pytest.fixture
def running(
    kube: ControlPlane,
    api_config: str,
    api_database_url: str,
    api_role_url: str,
    tmp_path: Path,
) -> Iterator[Running]:
    with ExitStack() as opened:
        yield Running(kube, api_config, (api_database_url, api_role_url), tmp_path, opened)


def test_each_is_told_alone_and_together_and_comes_back(running: Running) -> None:
    pid = running.api.process.pid
    for number in range(4):
        running.call("order", f"doomed-{number}")
    assert refusals(running.call_all("before")) == {}

    with running.without(DATABASE):
        missing = refusals(running.call_all("database"))
        status, words = running.ready
    assert missing == dict.fromkeys((*OF_DATABASE, "order"), DATABASE)
    assert status == 200
    assert "database" in words
    running.comes_back("database")

    missing = away_while_rights_are_known(running, KUBERNETES, key="kubernetes")
    assert missing == dict.fromkeys(OF_KUBERNETES, KUBERNETES)
    running.comes_back("kubernetes")

    left = running.doomed[-1]
    with running.without(AUDIT):
        eventually(lambda: running.call("me", "").status_code == 503)
        missing = refusals(running.call_all("audit") | {"stranger": running.stranger()})
        status, words = running.ready
    assert missing == dict.fromkeys((*CALLS, "stranger"), AUDIT)
    assert "degraded audit's file: cannot be written: No space left" in words
    assert running.doomed[-1] == left
    assert running.desired_state(left) == "Active"
    running.comes_back("audit")

    missing = away_while_rights_are_known(running, KUBERNETES, DATABASE, key="both")
    assert missing == dict.fromkeys(OF_KUBERNETES, KUBERNETES) | dict.fromkeys(
        OF_DATABASE, DATABASE
    )
    running.comes_back("both")

    with running.without(DATABASE, KUBERNETES, AUDIT):
        eventually(lambda: running.call("me", "").status_code == 503)
        missing = refusals(running.call_all("all"))
    assert set(missing) == set(CALLS)
    assert running.desired_state(running.doomed[-1]) == "Active"
    running.comes_back("all")
    newest = running.call("me", "").headers["x-request-id"]

    assert sorted(running.dispatches()) == sorted(running.ordered)
    eventually(lambda: newest in running.records())
    records = running.records()
    assert [told for each, told in running.recorded.items() if records.get(each) != 1] == []
    assert running.api.process.alive
    assert running.api.process.pid == pid


def away_while_rights_are_known(running: Running, *parts: str, key: str) -> dict[str, str]:
    """Take parts away right after all was asked for; return what is missing then.

    Rights are believed for 10 s: on a busy machine they may be forgotten in between.
    """
    missing: dict[str, str] = {}
    for number in range(20):
        running.comes_back(f"{key}-{number}")
        with running.without(*parts):
            missing = refusals(running.call_all(key))
            unknown = refusals({"stranger": running.stranger()})
            assert unknown == {"stranger": KUBERNETES}
            assert KUBERNETES in running.ready[1]
        if not set(OF_MEMORY) & set(missing):
            break
    return missing
