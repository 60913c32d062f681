"""The API in a cluster: brought by an upgrade, on two pods, and called while these go."""

import json
import secrets
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import Event
from typing import Any

import httpx
import pytest
from tests.cluster import database, installing
from tests.cluster.cluster import Cluster
from tests.cluster.figures import say
from tests.cluster.installing import NAMESPACE
from tests.cluster.pods import pods_of, wait_for_pod
from tests.cluster.proving import assert_true
from tests.cluster.site import TEST_LABEL, Site, namespace_manifest
from tests.waiting import eventually

NODE_PORT = 30844
BY_NODE_PORT = (
    "--set", "api.service.type=NodePort", "--set", f"api.service.nodePort={NODE_PORT}",
)  # fmt: skip
TWO = (*BY_NODE_PORT, "--set", "api.replicas=2")
PODS = ("derops-api-0", "derops-api-1")
ORDER = {"setpoint": {"mode": "ActivePower", "activePowerWatts": 3000}, "durationSeconds": 5}
HEAD_SECONDS = 120
"""A replica prints the head of its chain once a minute."""

SLOW_SECONDS = 60
"""An order that is repeated until it is answered may take as long as pods take to come back."""


class Trader:
    """A client that opens a connection for each call, and repeats what had no answer of use."""

    def __init__(self, cluster: Cluster, site: Site) -> None:
        accounts = f"{site.namespace}-callers"
        cluster.apply(namespace_manifest(accounts, **{TEST_LABEL: "true"}))
        account = {"name": "trading", "namespace": accounts}
        cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        cluster.kubectl(
            "create", "rolebinding", "trading", "--clusterrole=derops-dispatcher",
            f"--serviceaccount={accounts}:trading", "-n", site.namespace,
        )  # fmt: skip
        token = cluster.kubectl(
            "create", "token", "trading", "-n", accounts, "--audience=derops-api"
        )
        trust = cluster.get("configmap", "derops-server-ca", "-n", NAMESPACE)
        self._context = ssl.create_default_context(cadata=trust["data"]["ca.crt"])
        self._headers = {"Authorization": f"Bearer {token.strip()}"}
        (node, *_) = cluster.items("nodes")
        addresses = {each["type"]: each["address"] for each in node["status"]["addresses"]}
        self._url = f"https://{addresses['InternalIP']}:{NODE_PORT}"
        self._path = f"/v1/namespaces/{site.namespace}/dispatches"
        self.requests: list[str] = []
        """The ids of all calls that were answered."""
        self.repeated = 0
        """How often an order had no answer of use."""

    def order(self, key: str, **order: Any) -> dict[str, Any]:
        """Order a Dispatch for the battery and return it, however often that takes."""
        deadline = time.monotonic() + SLOW_SECONDS
        while True:
            answer = self._post(key, {"asset": "battery", **ORDER, **order})
            if answer is not None and answer.is_success:
                made: dict[str, Any] = answer.json()
                return made
            assert answer is None or "retry-after" in answer.headers, answer.text
            assert time.monotonic() < deadline, f"{key}: no answer within {SLOW_SECONDS} s"
            self.repeated += 1
            # The client's own pace, as it is told, or until a pod may take connections.
            time.sleep(0.2 if answer is None else int(answer.headers["retry-after"]))

    def _post(self, key: str, order: dict[str, Any]) -> httpx.Response | None:
        with httpx.Client(verify=self._context, timeout=15) as client:
            try:
                answer = client.post(
                    f"{self._url}{self._path}",
                    json=order,
                    headers={**self._headers, "Idempotency-Key": key},
                    extensions={"sni_hostname": "derops-api"},
                )
            except httpx.TransportError:
                return None
        self.requests.append(answer.headers["x-request-id"])
        return answer


@pytest.fixture(autouse=True)
def only_on_our_node(bare: Cluster) -> None:
    if bare.kind is None:
        pytest.skip("the API is called at a port of the node, which only a kind cluster lets us")


@pytest.fixture
def pair(bare: Cluster) -> Iterator[Cluster]:
    """Return the cluster with two replicas of the API; afterwards it has one again."""
    installing.install_by_chart(bare, *TWO)
    installing.wait_until_ready(bare)
    yield bare
    installing.install_by_chart(bare)


def test_an_upgrade_brings_the_api_and_the_next_one_goes_on_with_its_audit(empty: Cluster) -> None:
    installing.install_by_chart(empty, "--set", "api.enabled=false")
    assert not pods_of(empty, "api", NAMESPACE)
    site = Site(empty, "upgraded")
    site.create_namespace()
    site.battery()
    setpoint = {"mode": "ActivePower", "activePowerWatts": 4100}
    site.dispatch("through", setpoint=setpoint, durationSeconds=120)
    site.wait_for_phase("through", "Active")

    say("upgrade_that_brings_the_api", installing.install_by_chart(empty, *BY_NODE_PORT), "s", 60)
    trader = Trader(empty, site)
    tomorrow = in_hours(24)
    first = trader.order("first", startTime=tomorrow)
    before = heads(empty, PODS[:1])
    volume = volumes(empty)
    say("upgrade_to_two_of_the_api", upgraded_to_two(empty), "s", 60)
    again = trader.order("first", startTime=tomorrow)
    second = trader.order("second", startTime=in_hours(25))

    assert again["uid"] == first["uid"] != second["uid"]
    assert volumes(empty).items() > volume.items()
    eventually(lambda: all_recorded(empty, trader), "the records of all calls")
    assert len(chains(empty, PODS[0])) == 1
    verify(empty, *before, *heads(empty, PODS))
    site.wait_for_phase("through", "Complete", patience_seconds=180)
    assert_true(site, "through")


def upgraded_to_two(cluster: Cluster) -> float:
    """Upgrade to two replicas, of which the first is made anew; return the seconds that took."""
    (old,) = pods_of(cluster, "api", NAMESPACE)
    seconds = installing.install_by_chart(cluster, *TWO, "--set", "api.logLevel=DEBUG")
    installing.wait_until_ready(cluster)
    found = {each.name: each.uid for each in pods_of(cluster, "api", NAMESPACE)}
    assert set(found) == set(PODS)
    assert found[old.name] != old.uid
    return seconds


def test_two_pods_are_in_service_and_one_at_a_time_may_be_evicted(pair: Cluster) -> None:
    slices = pair.items(
        "endpointslices", "-n", NAMESPACE, "-l", "kubernetes.io/service-name=derops-api"
    )
    serving = [
        point["targetRef"]["name"]
        for each in slices
        for point in each["endpoints"]
        if point["conditions"]["ready"]
    ]
    assert sorted(serving) == list(PODS)
    eventually(lambda: allowed(pair) == 1, "the budget to know both pods")

    evict(pair, PODS[0])
    refused = pair.refusal(*evicting(PODS[1]), stdin=eviction(PODS[1]))

    assert "disruption budget" in refused
    wait_for_pod(pair, NAMESPACE, PODS[0])


# Python leaves a socket to the collector whose server is gone before the handshake.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_each_key_is_one_dispatch_while_pods_go(pair: Cluster, site: Site) -> None:
    site.battery()
    trader = Trader(pair, site)
    live = trader.order("live", durationSeconds=60, **lasting())
    numbers, over, salt = count(1), Event(), secrets.token_hex(3)

    def trade() -> dict[str, str]:
        made = {}
        while not over.wait(0.2):
            number = next(numbers)
            key, start = f"{salt}-{number}", in_hours(24 + number / 60)
            made[key] = trader.order(key, startTime=start)["uid"]
            assert trader.order(key, startTime=start)["uid"] == made[key]
            assert trader.order("live", durationSeconds=60, **lasting())["uid"] == live["uid"]
        return made

    with ThreadPoolExecutor(2) as pool:
        trading = [pool.submit(trade) for _ in range(2)]
        try:
            since = time.monotonic()
            force_away(pair, PODS[0])
            say("ready_after_force_one_of_two", time.monotonic() - since, "s", 10)
            eventually(lambda: allowed(pair) == 1, "the budget to know both pods")
            evict(pair, PODS[1])
            wait_for_pod(pair, NAMESPACE, PODS[1])
            force_away(pair, PODS[1])
            kill_one(pair)
        finally:
            over.set()
        made = {key: uid for each in trading for key, uid in each.result().items()}

    there = [each["metadata"]["uid"] for each in pair.items("dispatches", "-n", site.namespace)]
    assert sorted(there) == sorted([live["uid"], *made.values()])
    assert len(made) == next(numbers) - 1 > 5
    eventually(lambda: all_recorded(pair, trader), "the records of all calls")
    assert all(chains(pair, pod) for pod in PODS)
    verify(pair, *heads(pair, PODS))
    site.wait_for_phase(live["name"], "Complete", patience_seconds=120)
    assert_true(site, live["name"])
    print(f"\n{len(made)} orders, {trader.repeated} calls of them repeated for want of an answer")


def lasting() -> dict[str, Any]:
    """Return what lets a window start late on a busy machine, and be as long then."""
    return {"startDeadlineSeconds": 60, "latePolicy": "KeepDuration"}


def in_hours(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds")


def allowed(cluster: Cluster) -> int:
    """Return how many pods of the API may be disturbed now."""
    budget = cluster.get("poddisruptionbudget", "derops-api", "-n", NAMESPACE)
    return int(budget["status"]["disruptionsAllowed"])


def evict(cluster: Cluster, pod: str) -> None:
    """Have a pod go as a drain of its node does."""
    cluster.kubectl(*evicting(pod), stdin=eviction(pod))


def evicting(pod: str) -> list[str]:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    return ["create", "--raw", path, "-f", "-"]


def eviction(pod: str) -> str:
    metadata = {"name": pod, "namespace": NAMESPACE}
    return json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})


def force_away(cluster: Cluster, pod: str) -> None:
    """End a pod without a time to end in, and wait for the next one of its name."""
    cluster.kubectl("delete", "pod", pod, "-n", NAMESPACE, "--force", "--grace-period=0")
    wait_for_pod(cluster, NAMESPACE, pod)


def kill_one(cluster: Cluster) -> None:
    """End one program of the API as a crash would, and wait until its container runs again."""

    def restarts() -> int:
        pods = cluster.items("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=api")
        return sum(each["status"]["containerStatuses"][0]["restartCount"] for each in pods)

    before = restarts()
    program = cluster.run_in_node("pgrep", "--oldest", "--full", "entrypoint api$")
    cluster.run_in_node("kill", "-KILL", program.strip())
    eventually(lambda: restarts() > before, "the container to run again")
    for pod in PODS:
        wait_for_pod(cluster, NAMESPACE, pod)


def volumes(cluster: Cluster) -> dict[str, str]:
    """Return the volume of each claim of the API's pods."""
    claims = cluster.items("persistentvolumeclaims", "-n", NAMESPACE)
    return {
        each["metadata"]["name"]: each["spec"]["volumeName"]
        for each in claims
        if each["metadata"]["name"].startswith("data-derops-api")
    }


def chains(cluster: Cluster, pod: str) -> list[str]:
    """Return the chains of audit records that a pod of the API wrote."""
    query = f"select distinct chain from audit_event where chain like '{pod}/%'"
    return [str(each["chain"]) for each in database.rows(cluster, query)]


def all_recorded(cluster: Cluster, trader: Trader) -> bool:
    """Tell whether the end of each call that was answered is in the database."""
    query = "select request_id from audit_event where stage = 'ResponseComplete'"
    told = {each["request_id"] for each in database.rows(cluster, query)}
    return told >= set(trader.requests)


def heads(cluster: Cluster, pods: tuple[str, ...]) -> list[str]:
    """Return a head of each pod's chain as its log has it."""

    def look() -> list[str]:
        logs = [cluster.kubectl("logs", pod, "-n", NAMESPACE).splitlines() for pod in pods]
        told = [[line for line in log if '"audit.head"' in line] for log in logs]
        return [each[-1] for each in told] if all(told) else []

    return eventually(look, f"the heads of {pods}", HEAD_SECONDS)


def verify(cluster: Cluster, *told: str) -> None:
    """Fail unless the audit is what was written down, by the product's own word."""
    script = "cat > /tmp/heads && derops-headend audit verify --heads /tmp/heads"
    where = ["-i", "derops-headend-0", "-n", NAMESPACE, "-c", "writer"]
    said = cluster.kubectl("exec", *where, "--", "sh", "-c", script, stdin="\n".join(told))
    assert f"{len(told)} heads that were told: all is as it was written down" in said
