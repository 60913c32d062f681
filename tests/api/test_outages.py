"""Kubernetes, database and audit away, from one API that runs through all of it.

What needs what is away is answered 503, says what is missing and when to try again; the other half
goes on, and all of it comes back without a restart.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.auditing.disks import small_disk
from tests.api.cutting import CutProxy
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.manifests import BATTERY, DISPATCH, merged
from tests.stack import ops
from tests.stack.controlplane import ControlPlane
from tests.waiting import eventually

from derops_headend.api.audit.file import AuditFile
from derops_headend.api.audit.record import opened as opening
from derops_headend.api.audit.trail import READS_SHARE
from derops_headend.api.settings import LEAST_AUDIT_BYTES

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
AUDIT_MAX_BYTES = LEAST_AUDIT_BYTES
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
        *,
        full: bool,
    ) -> None:
        owner_url, api_url = urls
        self.database_url, self.kube = owner_url, kube
        self._tenant: Tenant = make_tenant(kube, NAMESPACE)
        kube.apply(merged(BATTERY, {"metadata": {"namespace": NAMESPACE}}))
        self.kubernetes = opened.enter_context(CutProxy(kube.server))
        self.database = opened.enter_context(CutProxy(api_url))
        (directory / "api").mkdir()
        self._disk = opened.enter_context(small_disk(directory / "api" / "audit", megabytes=8))
        if full:
            self.database.take_away()
            nearly_fill(self._disk)
        self.api: ApiProcess = opened.enter_context(
            ApiProcess(
                directory / "api",
                self.kubernetes.kubeconfig(config, directory),
                by_port(api_url, self.database.port),
                {"DEROPS_API_AUDIT_MAX_BYTES": str(AUDIT_MAX_BYTES)},
            )
        )
        self._client = opened.enter_context(self.api.client(self._tenant.token("dispatcher")))
        self.doomed: list[str] = []
        """Names of Dispatches that were not cancelled yet."""
        self.cancelled: list[str] = []
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
            case "again":
                answer = self._client.post(f"{PATH}/dispatches/{self.cancelled[-1]}/cancel")
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
                    self.cancelled.append(self.doomed.pop())
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
        listed = self.kube.kubectl("get", "dispatches", "-n", NAMESPACE, "-o", "name")
        return [each.rpartition("/")[2] for each in listed.split()]

    def desired_state(self, name: str) -> str:
        path = "jsonpath={.spec.desiredState}"
        return self.kube.kubectl("get", "dispatch", name, "-n", NAMESPACE, "-o", path)

    def without_record(self, newest: str) -> list[str]:
        """Return what was answered and has not one record, once the newest call has its own."""
        eventually(lambda: newest in self._records())
        records = self._records()
        return [told for each, told in self.recorded.items() if records.get(each) != 1]

    def _records(self) -> dict[str, int]:
        with psycopg.connect(self.database_url) as connection:
            return dict(
                connection.execute(
                    "select request_id, count(*) from audit_event where request_id = any(%s) "
                    "and stage = 'ResponseComplete' group by 1",
                    (list(self.recorded),),
                ).fetchall()
            )


def nearly_fill(directory: Path) -> None:
    """Leave what reads would fill soon, in the audit's file of a replica that does not run."""
    now = datetime.now(UTC)
    file = AuditFile(directory, replica="api-0", now=now)
    while file.size < READS_SHARE * AUDIT_MAX_BYTES - 50_000:
        file.append([opening(now, {"filler": "x" * 30_000})])
    file.close()


def by_port(url: str, port: int) -> str:
    """Return a database's URL by another port."""
    before, _, after = url.rpartition("@")
    return f"{before}@127.0.0.1:{port}/{after.partition('/')[2]}"


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
def run(
    kube: ControlPlane,
    api_config: str,
    api_database_url: str,
    api_role_url: str,
    tmp_path: Path,
) -> Iterator[Callable[..., Running]]:
    with ExitStack() as stack:
        urls = api_database_url, api_role_url

        def start(*, full: bool = False) -> Running:
            return Running(kube, api_config, urls, tmp_path, stack, full=full)

        yield start


def test_each_is_told_alone_and_together_and_comes_back(run: Callable[..., Running]) -> None:
    running = run()
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
    assert running.without_record(newest) == []
    assert running.api.process.alive
    assert running.api.process.pid == pid


def test_what_cannot_be_recorded_is_not_answered(run: Callable[..., Running]) -> None:
    """R132: call unseen while the file is full, by orders and cancels that have nothing to do."""
    running = run(full=True)
    for name in ("first", "second", "third"):
        spec = {"assetRef": {"name": "battery-7"}, "setpoint": ORDER["setpoint"]}
        spec |= {"durationSeconds": ORDER["durationSeconds"], "startTime": "2099-01-01T00:00:00Z"}
        manifest = merged(DISPATCH, {"metadata": {"namespace": NAMESPACE, "name": name}})
        running.kube.apply({**manifest, "spec": spec})
        running.doomed.append(name)
    eventually(lambda: running.call("me", "").status_code == 503)

    missing = refusals({each: running.call(each, "key") for each in (*CALLS, "again")})

    assert missing == dict.fromkeys({*CALLS, "again"} - {"cancel"}, AUDIT)
    assert running.desired_state("third") == "Cancelled"
    running.database.pass_on()
    running.comes_back("key")
    assert running.without_record(running.call("me", "").headers["x-request-id"]) == []


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
