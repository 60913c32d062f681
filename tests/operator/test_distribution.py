"""The ConfigMaps come, are healed and go; a failure is one namespace's; no tenant is believed."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from kubernetes.aio.client.exceptions import ApiException
from tests.operator.certifying import CERT_MANAGER, certificate_pem, csr, request
from tests.operator.hostile import HostileKube
from tests.operator.making import asset, at, metadata
from tests.pki import LIFETIME, Authority
from tests.waiting import until

from derops.observability import Readiness
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import Kube, Manifest
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.executor import Executor
from derops_operator.reconciling.agent_authority import TRUST_CERTIFICATE, wanted_trust_certificate
from derops_operator.reconciling.identity import Realm
from derops_operator.resources.certificates import Request
from derops_operator.resources.instants import format_second
from derops_operator.resources.manifests import read_fact
from derops_operator.resources.objects import Kind, ObjectKey
from derops_operator.trust.authorities import REISSUE_SECONDS
from derops_operator.trust.config_maps import AGENT_CA, KEY, SERVER_CA
from derops_operator.trust.distribution import RECHECK_SECONDS, Distributor

OWN = "derops-system"


class World:
    """A distributor on an API server in memory, whose time the test moves."""

    def __init__(self, folder: Path) -> None:
        self.kube = HostileKube()
        self.cache, self.readiness = Cache(), Readiness()
        self.server, self.agent = Authority("server"), Authority("agent")
        self.file = folder / "ca.crt"
        self.file.write_bytes(self.server.pem)
        self.seconds = 1000.0
        self.now = datetime.now(UTC)
        kube = cast("Kube", self.kube)
        self.events = EventWriter(kube)
        actor = Executor(kube, self.events, self.cache, self.take, lambda _: None, lambda: at(0))
        self.distributor = Distributor(
            kube,
            self.cache,
            actor,
            self.events,
            self.readiness,
            self.take,
            namespace=OWN,
            server_ca_file=self.file,
            realm=Realm(trust_domain="derops.test", issuer="derops-agent", requester=CERT_MANAGER),
            now=lambda: self.now,
            monotonic=lambda: self.seconds,
        )

    def take(self, kind: Kind, manifest: Any) -> None:
        fact = read_fact(kind, manifest, at(0))
        assert not hasattr(fact, "key"), fact
        self.cache.put(kind, cast("Any", fact))
        if isinstance(fact, Request):
            self.distributor.hear(fact)

    def add_asset(self, namespace: str, name: str = "battery") -> None:
        made = asset(name)
        meta = replace(made.meta, namespace=namespace, uid=f"uid-{namespace}-{name}")
        self.cache.put(Kind.ASSET, replace(made, meta=meta))
        self.distributor.concern(namespace)

    def drop_asset(self, namespace: str, name: str = "battery") -> None:
        self.cache.drop(ObjectKey(Kind.ASSET, namespace, name))
        self.distributor.concern(namespace)

    def sign(self, number: int, authority: Authority, *, signed: float) -> None:
        """Answer for the operator's own Certificate, as cert-manager does."""
        wanted = wanted_trust_certificate(OWN, "derops-agent")
        name = x509.DNSName(TRUST_CERTIFICATE)
        manifest = {
            "metadata": metadata(
                f"{TRUST_CERTIFICATE}-{number}",
                namespace=OWN,
                ownerReferences=[
                    {
                        "kind": "Certificate",
                        "controller": True,
                        "name": TRUST_CERTIFICATE,
                        "uid": f"uid-{TRUST_CERTIFICATE}",
                    }
                ],
            ),
            "spec": {
                "request": csr(name),
                "username": CERT_MANAGER,
                "duration": "1h0m0s",
                "usages": wanted["spec"]["usages"],
                "issuerRef": wanted["spec"]["issuerRef"],
            },
            "status": {"conditions": []},
        }
        self.kube.objects.append((Kind.REQUEST, manifest))
        self.take(Kind.REQUEST, manifest)
        self._answers = (manifest, authority, signed, number)

    def answer(self) -> bool:
        """Sign what was approved; tell whether it was."""
        manifest, authority, signed, number = self._answers
        approved = any(each["type"] == "Approved" for each in manifest["status"]["conditions"])
        if approved:
            manifest["status"] |= {
                "certificate": certificate_pem(number, start=signed),
                "ca": base64.b64encode(authority.pem).decode(),
            }
            manifest["metadata"]["resourceVersion"] = str(100 + number)
            self.take(Kind.REQUEST, manifest)
        return approved

    async def look(self, *, later: float = RECHECK_SECONDS) -> None:
        """Look once all is to be looked at again, and wait until all is written."""
        self.seconds += later
        await self.distributor.look()
        await until(lambda: self.distributor._queue.idle)

    def told(self, namespace: str, name: str = SERVER_CA) -> str | None:
        manifest = self.kube.maps.get((namespace, name))
        return None if manifest is None else str(manifest["data"][KEY])

    def put(self, namespace: str, data: dict[str, str], **fields: Any) -> Manifest:
        """Have a stranger write a ConfigMap."""
        manifest = {
            "metadata": {"namespace": namespace, "name": SERVER_CA, "uid": f"strange-{namespace}"},
            "data": data,
            **fields,
        }
        self.kube.maps[namespace, SERVER_CA] = manifest
        return manifest

    @property
    def reasons(self) -> list[tuple[str, str]]:
        found = []
        while not self.events._queue.empty():
            namespace, body = self.events._queue.get_nowait()
            found.append((namespace, body["reason"]))
        return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    worker = asyncio.create_task(world.distributor._work())
    yield world
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)


async def test_each_namespace_with_assets_is_told_and_our_own(world: World) -> None:
    for namespace in ("north", "south"):
        world.add_asset(namespace)

    await world.look()

    expected = world.server.pem.decode()
    assert {name for name, _ in world.kube.maps} == {"north", "south", OWN}
    assert {world.told(each) for each in ("north", "south", OWN)} == {expected}
    assert world.kube.maps["north", SERVER_CA]["metadata"]["labels"][
        "app.kubernetes.io/managed-by"
    ] == "derops"  # fmt: skip


async def test_it_goes_with_the_last_asset_of_a_namespace(world: World) -> None:
    world.add_asset("north", "one")
    world.add_asset("north", "two")
    await world.look()

    world.drop_asset("north", "one")
    await until(lambda: world.distributor._queue.idle)
    assert world.told("north")
    world.drop_asset("north", "two")
    await until(lambda: world.told("north") is None)
    await world.look()

    assert world.told("north") is None
    assert world.told(OWN)


async def test_what_was_left_while_we_were_away_goes_and_what_is_not_ours_stays(
    world: World,
) -> None:
    labels = {"app.kubernetes.io/managed-by": "derops"}
    world.put("left", {KEY: "x"})["metadata"]["labels"] = labels
    world.put("a-tenants", {KEY: "x"})

    await world.look()

    assert world.told("left") is None
    assert world.told("a-tenants") == "x"


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        ({KEY: "another"}, {}),
        ({KEY: "another", "more": "x" * 1000}, {}),
        ({}, {"binaryData": {KEY: "AAAA"}}),
        ({KEY: "another"}, {"immutable": True}),
        ({"ca.key": "x"}, {"immutable": True}),
    ],
    ids=["replaced", "grown", "binary", "immutable", "another key, immutable"],
)
async def test_what_somebody_put_in_is_taken_back(
    world: World, data: dict[str, str], fields: dict[str, Any]
) -> None:
    world.add_asset("north")
    await world.look()

    world.put("north", data, **fields)
    await world.look()

    assert world.kube.maps["north", SERVER_CA]["data"] == {KEY: world.server.pem.decode()}
    assert not world.kube.maps["north", SERVER_CA].get("immutable")


async def test_one_that_was_there_first_is_not_taken_over_with_all_that_is_in_it(
    world: World,
) -> None:
    await world.look()
    world.put("north", {"more": "x"})

    world.add_asset("north")
    await until(lambda: world.told("north") if KEY in world.kube.maps["north", SERVER_CA]["data"]
                else None)  # fmt: skip
    await until(lambda: world.distributor._queue.idle)

    assert world.kube.maps["north", SERVER_CA]["data"] == {KEY: world.server.pem.decode()}


async def test_a_deleted_one_comes_back(world: World) -> None:
    world.add_asset("north")
    await world.look()

    world.kube.maps.clear()
    await world.look()

    assert world.told("north") == world.told(OWN) == world.server.pem.decode()


async def test_a_new_authority_is_told_beside_the_one_before(world: World) -> None:
    world.add_asset("north")
    await world.look()

    renewed = Authority("server")
    world.file.write_bytes(renewed.pem)
    await world.look(later=0)

    expected = (renewed.pem + world.server.pem).decode()
    assert world.told("north") == world.told(OWN) == expected


async def test_a_compromised_authority_goes_at_once_with_the_copy_in_our_namespace(
    world: World,
) -> None:
    world.add_asset("north")
    await world.look()
    renewed = Authority("server")
    world.file.write_bytes(renewed.pem)
    await world.look()

    del world.kube.maps[OWN, SERVER_CA]
    await world.look()

    assert world.told("north") == world.told(OWN) == renewed.pem.decode()


async def test_what_a_tenants_copy_holds_is_never_believed(world: World) -> None:
    world.add_asset("north")
    await world.look()

    world.put("north", {KEY: Authority("evil").pem.decode()})
    world.file.write_bytes(Authority("server").pem)
    await world.look()

    evil = world.told("north")
    assert evil == world.told(OWN)
    assert evil is not None
    names = {
        each.issuer.rfc4514_string() for each in x509.load_pem_x509_certificates(evil.encode())
    }
    assert names == {"CN=server"}


@pytest.mark.parametrize("content", [None, b"", b"garbage"], ids=["gone", "empty", "garbage"])
async def test_a_bad_file_is_told_and_what_is_there_stays(
    world: World, content: bytes | None
) -> None:
    world.add_asset("north")
    await world.look()

    if content is None:
        world.file.unlink()
    else:
        world.file.write_bytes(content)
    world.add_asset("south")
    await world.look()

    assert world.told("north") == world.told("south") == world.server.pem.decode()
    assert f"degraded server CA: {world.file}" in world.readiness.report()[1]


async def test_with_nothing_known_nothing_is_written_over(world: World) -> None:
    world.file.write_bytes(b"")
    world.put("north", {KEY: "as it was"})
    world.add_asset("north")

    await world.look()

    assert world.told("north") == "as it was"


async def test_an_expired_authority_is_told_on_readyz(world: World) -> None:
    world.now += LIFETIME

    await world.look()

    assert "degraded server CA: expired on" in world.readiness.report()[1]
    assert world.told(OWN) == world.server.pem.decode()


async def test_one_namespace_that_refuses_concerns_itself_alone(world: World) -> None:
    refusal = ApiException(status=403, reason="exceeded quota: configmaps=3")
    world.kube.refused["south"] = refusal
    for namespace in ("north", "south", "west"):
        world.add_asset(namespace)

    world.seconds += RECHECK_SECONDS
    await world.distributor.look()
    await until(lambda: world.distributor._failing)
    await until(lambda: world.told("north") and world.told("west"))

    assert world.told("south") is None
    assert world.reasons == [("south", "TrustNotDelivered")]
    ready, text = world.readiness.report()
    assert ready
    assert "server CA in namespaces: not written in 1: south: " in text
    assert "exceeded quota" in text

    del world.kube.refused["south"]
    await until(lambda: world.told("south"))
    await until(lambda: "in namespaces" not in world.readiness.report()[1])
    assert world.reasons == []


async def test_a_namespace_that_is_going_is_no_trouble(world: World) -> None:
    reason = "unable to create new content in namespace south because it is being terminated"
    world.kube.refused["south"] = ApiException(status=403, reason=reason)
    world.add_asset("south")

    await world.look()

    assert world.reasons == []
    assert "in namespaces" not in world.readiness.report()[1]


async def test_a_thousand_namespaces_are_written_once(world: World) -> None:
    for number in range(1000):
        world.add_asset(f"pilot-{number}")

    await world.look()
    assert len(world.kube.applied) == 1001
    world.kube.applied.clear()
    await world.look()

    assert world.kube.applied == []


async def test_the_agent_ca_is_what_the_issuer_of_our_own_certificate_says(world: World) -> None:
    await world.look()
    assert "degraded agent CA" in world.readiness.report()[1]
    world.sign(1, world.agent, signed=0)
    await world.look(later=0)

    assert world.answer(), "the request was approved"
    await world.look(later=0)

    assert world.told(OWN, AGENT_CA) == world.agent.pem.decode()
    assert "agent CA" not in world.readiness.report()[1]


def reissued(world: World) -> bool:
    manifest = world.kube.find(Kind.CERTIFICATE, OWN, TRUST_CERTIFICATE)
    conditions = manifest.get("status", {}).get("conditions", [])
    return any(each["type"] == "Issuing" for each in conditions)


def agent_request(authority: Authority, signed: float) -> Request:
    made = request(serial=9, issued=signed)
    return replace(made, ca_sha256=f"of-{id(authority)}")


async def test_a_new_agent_ca_is_asked_for_as_soon_as_an_agent_has_it(world: World) -> None:
    await world.look()
    world.sign(1, world.agent, signed=0)
    await world.look(later=0)
    world.answer()
    await world.look()
    manifest = world.kube.find(Kind.CERTIFICATE, OWN, TRUST_CERTIFICATE)
    manifest["status"] = {"conditions": []}
    await world.look(later=REISSUE_SECONDS)
    assert not reissued(world)

    renewed = Authority("agent")
    world.distributor.hear(agent_request(renewed, signed=5))
    await world.look(later=REISSUE_SECONDS)
    assert reissued(world)

    world.sign(2, renewed, signed=6)
    await world.look(later=0)
    world.answer()
    await world.look(later=0)
    told = world.told(OWN, AGENT_CA)
    assert told == (renewed.pem + world.agent.pem).decode()


async def test_a_new_agent_ca_is_asked_for_before_any_agent_has_it(world: World) -> None:
    await world.look()
    world.sign(1, world.agent, signed=10)
    await world.look(later=0)
    world.answer()
    authority = {
        "metadata": metadata("derops-agent-ca", namespace="cert-manager"),
        "status": {"notBefore": format_second(at(5))},
    }
    world.kube.objects.append((Kind.CERTIFICATE, authority))
    await world.look(later=REISSUE_SECONDS)
    assert not reissued(world)

    authority["status"] = {"notBefore": format_second(at(20))}
    await world.look(later=REISSUE_SECONDS)

    assert reissued(world)


async def test_a_certificate_without_a_request_that_tells_is_issued_anew(world: World) -> None:
    await world.look()
    manifest = world.kube.find(Kind.CERTIFICATE, OWN, TRUST_CERTIFICATE)
    assert not reissued(world), "cert-manager is at it"

    manifest["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    manifest["metadata"]["resourceVersion"] = "50"
    await world.look()

    assert reissued(world)


async def test_a_renewal_that_is_not_due_is_asked_for_once_a_minute(world: World) -> None:
    await world.look()
    world.sign(1, world.agent, signed=0)
    await world.look(later=0)
    world.answer()
    manifest = world.kube.find(Kind.CERTIFICATE, OWN, TRUST_CERTIFICATE)
    manifest["status"] = {"conditions": []}
    world.distributor.hear(agent_request(Authority("agent"), signed=5))
    await world.look(later=REISSUE_SECONDS)
    assert reissued(world)

    manifest["status"] = {"conditions": []}
    manifest["metadata"]["resourceVersion"] = "50"
    await world.look(later=REISSUE_SECONDS - 1)
    assert not reissued(world)
    await world.look(later=1)
    assert reissued(world)


async def test_a_request_of_that_name_in_a_tenants_namespace_is_nobodys(world: World) -> None:
    await world.look()
    world.sign(1, world.agent, signed=0)
    own = world._answers[0]
    forged = {**own, "metadata": {**own["metadata"], "namespace": "north", "uid": "forged"}}
    world.kube.objects = [(Kind.REQUEST, forged) if each[1] is own else each
                          for each in world.kube.objects]  # fmt: skip
    world.cache.drop(ObjectKey(Kind.REQUEST, OWN, own["metadata"]["name"]))
    world.take(Kind.REQUEST, forged)

    await world.look()

    assert forged["status"]["conditions"] == []
    assert world.told(OWN, AGENT_CA) is None
