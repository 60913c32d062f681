"""One object that cannot be read, or worked on, concerns itself alone: at the start and later."""

import asyncio
import base64
import copy
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes.aio.client.exceptions import ApiException
from prometheus_client import REGISTRY
from tests.crds.manifests import BATTERY, DISPATCH
from tests.operator.certifying import CERT_MANAGER, URI, certificate_pem, csr
from tests.operator.hostile import HostileKube, key_of, operator
from tests.operator.making import T0, metadata
from tests.waiting import until

from derops.observability import Readiness
from derops.wire.v1 import control_pb2
from derops_operator.cluster.resync import Resync
from derops_operator.controller import Controller
from derops_operator.reconciling.identity import wanted_certificate
from derops_operator.resources.certificates import Request
from derops_operator.resources.instants import format_second
from derops_operator.resources.manifests import attempt, identify, read_fact
from derops_operator.resources.objects import FINALIZER, Kind, Unreadable

Manifest = dict[str, Any]
ACTIVE = {"phase": "Active", "reason": "Applied", "message": "", "observedGeneration": 1}


def asset(name: str = "battery", **status: Any) -> Manifest:
    return {
        "metadata": metadata(name, finalizers=[FINALIZER], labels={"a": "b"}),
        "spec": deepcopy(BATTERY["spec"]),
        "status": {
            "observedGeneration": 1,
            "identity": {
                "uri": URI,
                "current": {
                    "serialNumber": "1",
                    "publicKeySHA256": "2",
                    "notAfter": format_second(T0),
                },
                "previous": {
                    "serialNumber": "3",
                    "publicKeySHA256": "4",
                    "notAfter": format_second(T0),
                    "acceptedUntil": format_second(T0),
                },
            },
            "conditions": [
                {
                    "type": "Released",
                    "status": "False",
                    "reason": "Releasing",
                    "message": "",
                    "lastTransitionTime": format_second(T0),
                }
            ],
            **status,
        },
    }


def dispatch(name: str = "peak", asset_name: str = "battery", **status: Any) -> Manifest:
    return {
        "metadata": metadata(name, finalizers=[FINALIZER]),
        "spec": {
            **deepcopy(DISPATCH["spec"]),
            "assetRef": {"name": asset_name},
            "startTime": "2036-01-01T00:00:00Z",
            "durationSeconds": 600,
        },
        "status": {
            **ACTIVE,
            "timeline": {"submittedAt": format_second(T0), "plannedEnd": "2036-01-01T00:10:00Z"},
            "history": [
                {
                    "at": format_second(T0),
                    "phase": "Submitted",
                    "reason": "Validated",
                    "message": "",
                    "actor": "Operator",
                }
            ],
            **status,
        },
    }


def request(name: str = "battery-derops-agent-1", **spec: Any) -> Manifest:
    owner = {"kind": "Certificate", "controller": True, "uid": "uid-battery-derops-agent"}
    return {
        "metadata": metadata(
            name, labels={"derops.io/asset": "battery"}, ownerReferences=[owner]
        ),
        "spec": {
            "request": csr(),
            "username": CERT_MANAGER,
            "duration": "720h0m0s",
            "usages": ["client auth", "digital signature"],
            "issuerRef": {
                "kind": "ClusterIssuer", "name": "derops-agent", "group": "cert-manager.io",
            },
            **spec,
        },
        "status": {
            "conditions": [{"type": "Approved", "status": "True"}],
            "certificate": certificate_pem(7),
        },
    }  # fmt: skip


def certificate() -> Manifest:
    found = read_fact(Kind.ASSET, asset(), 0)
    wanted = wanted_certificate(found, "derops.test", "derops-agent")  # type: ignore[arg-type]
    return {
        "metadata": metadata("battery-derops-agent", labels={"derops.io/asset": "battery"}),
        "spec": wanted["spec"],
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }


def everything() -> list[tuple[Kind, Manifest]]:
    """Return what one tenant has, all of it good."""
    return [
        (Kind.ASSET, asset()),
        (Kind.DISPATCH, dispatch()),
        (Kind.REQUEST, request()),
        (Kind.CERTIFICATE, certificate()),
    ]


def neighbour() -> list[tuple[Kind, Manifest]]:
    """Return an asset with a dispatch in flight of somebody else."""
    objects = [(Kind.ASSET, asset("other")), (Kind.DISPATCH, dispatch("theirs", "other"))]
    for _, manifest in objects:
        manifest["metadata"]["namespace"] = "elsewhere"
        manifest["metadata"]["uid"] += "-elsewhere"
    return objects


def told(controller: Controller) -> list[control_pb2.OperatorMessage]:
    """Return the snapshot that a gateway would get."""
    subscription = controller.core.desired.subscribe()
    subscription.most = 1000
    return subscription.take()


def unread(controller: Controller) -> dict[str, str]:
    return {
        each.unread.uid: each.unread.asset_name
        for each in told(controller)
        if each.HasField("unread")
    }


def held(controller: Controller) -> set[str]:
    snapshot = told(controller)
    dispatches = {each.dispatch.uid for each in snapshot if each.HasField("dispatch")}
    return dispatches | {each.asset.id.uid for each in snapshot if each.HasField("asset")}


def counted(kind: Kind) -> float:
    name = "derops_operator_unreadable_objects"
    return REGISTRY.get_sample_value(name, {"kind": kind.value}) or 0.0


# At the start


async def test_the_start_goes_on_and_gateways_keep_what_could_not_be_read(tmp_path: Path) -> None:
    bad = dispatch("bad", phase="Levitating")
    readiness = Readiness()
    kube = HostileKube([*everything(), *neighbour(), (Kind.DISPATCH, bad)])

    async with operator(kube, tmp_path, readiness) as controller:
        assert unread(controller) == {"uid-bad": "battery"}
        end = told(controller)[-1].snapshot_end
        assert (end.assets, end.dispatches, end.unread) == (2, 2, 1)
        assert {"uid-peak", "uid-theirs-elsewhere"} <= held(controller)
        await until(lambda: ("Dispatch", "bad", "Unreadable") in kube.events)
        assert counted(Kind.DISPATCH) == 1
        assert "degraded objects: cannot read dispatches pilot/bad" in readiness.report()[1]

        kube.remove(Kind.DISPATCH, "pilot", "bad")
        await controller.resync.run()

        assert unread(controller) == {}
        assert counted(Kind.DISPATCH) == 0
        assert "degraded" not in readiness.report()[1]


async def test_a_name_that_fits_into_no_message_ends_no_start(tmp_path: Path) -> None:
    nameless = dispatch("nameless", "half \ud800")
    nameless["spec"]["setpoint"] = "no object"
    homeless = asset("homeless")
    homeless["metadata"]["namespace"] = "half \ud800"
    kube = HostileKube([(Kind.DISPATCH, nameless), (Kind.ASSET, homeless), *everything()])

    async with operator(kube, tmp_path) as controller:
        assert unread(controller) == {"uid-nameless": "half ?"}
        assert {"uid-battery", "uid-peak"} <= held(controller)


async def test_an_asset_that_cannot_be_read_takes_its_dispatches_along(tmp_path: Path) -> None:
    bad = asset()
    bad["spec"]["type"] = "Volcano"
    waiting = dispatch("new", phase="Submitted", timeline={})  # no gateway was given it
    waiting["metadata"]["finalizers"] = []
    ended = dispatch(
        "ended",
        phase="Failed",
        completionTime=format_second(T0),
        conditions=[{"type": "Reverted", "status": "False"}],
    )
    kube = HostileKube([(Kind.ASSET, bad)])
    kube.objects += [(Kind.DISPATCH, each) for each in (dispatch(), waiting, ended)]
    before = copy.deepcopy([manifest for _, manifest in kube.objects])

    async with operator(kube, tmp_path) as controller:
        assert unread(controller).keys() == {"uid-battery", "uid-peak", "uid-ended"}
        await until(lambda: ("DERAsset", "battery", "Unreadable") in kube.events)
        for name in ("peak", "new", "ended"):
            await controller.core.reconcile(key_of(Kind.DISPATCH, name))
        await controller.core.reconcile(key_of(Kind.ASSET, "battery"))
        assert [manifest for _, manifest in kube.objects] == before, "something was decided"

        bad["spec"]["type"] = "Battery"
        bad["metadata"]["resourceVersion"] = "11"
        controller.core.take(Kind.ASSET, bad)

        await until(lambda: not unread(controller))
        await until(lambda: {"uid-battery", "uid-peak", "uid-new"} <= held(controller))


async def test_an_asset_is_held_while_a_dispatch_of_it_cannot_be_read(tmp_path: Path) -> None:
    going, bad = asset(), dispatch(phase="Levitating")
    going["metadata"]["deletionTimestamp"] = format_second(T0 - 10**15)
    kube = HostileKube([(Kind.ASSET, going), (Kind.DISPATCH, bad)])

    async with operator(kube, tmp_path) as controller:
        await controller.core.reconcile(key_of(Kind.ASSET, "battery"))
        assert going["metadata"]["finalizers"] == [FINALIZER]

        kube.remove(Kind.DISPATCH, "pilot", "peak")
        controller.core.drop(key_of(Kind.DISPATCH, "peak"), "uid-peak")

        await until(lambda: going["metadata"]["finalizers"] == [])


async def test_what_was_never_given_to_a_gateway_keeps_no_asset_waiting(tmp_path: Path) -> None:
    fresh = dispatch("fresh")
    fresh["metadata"]["finalizers"], fresh["status"] = [], {"phase": "Submitted"}
    fresh["spec"]["startTime"] = "0000-01-01T00:00:00Z"
    done = dispatch("done", phase="Complete", completionTime="long ago")
    done["metadata"]["finalizers"] = []
    done["spec"]["durationSeconds"] = "ten"
    kube = HostileKube([*everything(), (Kind.DISPATCH, fresh), (Kind.DISPATCH, done)])

    async with operator(kube, tmp_path) as controller:
        assert unread(controller) == {}
        await until(lambda: {e[1] for e in kube.events} >= {"fresh", "done"})


async def test_what_can_be_read_and_not_worked_on_is_kept_too(tmp_path: Path) -> None:
    """The last bound: whatever a decision stumbles over, also one that nobody thought of."""
    odd = dispatch("odd", timeline={"plannedEnd": "long ago"})
    odd_asset = asset("odd-asset", identity={"current": {"notAfter": 5}})
    kube = HostileKube([*neighbour(), *everything(), (Kind.DISPATCH, odd), (Kind.ASSET, odd_asset)])

    async with operator(kube, tmp_path) as controller:
        assert unread(controller) == {"uid-odd": "battery", "uid-odd-asset": "odd-asset"}
        assert {"uid-peak", "uid-theirs-elsewhere"} <= held(controller)
        await until(lambda: {e[1] for e in kube.events} >= {"odd", "odd-asset"})

        odd["status"]["timeline"] = {}
        odd["metadata"]["resourceVersion"] = "11"
        controller.core.take(Kind.DISPATCH, odd)

        await until(lambda: "uid-odd" in held(controller))
        assert counted(Kind.DISPATCH) == 0


async def test_what_replicas_say_of_what_cannot_be_read_is_kept_for_when_it_can(
    tmp_path: Path,
) -> None:
    kube = HostileKube([(Kind.ASSET, asset()), (Kind.DISPATCH, dispatch(phase="Levitating"))])

    async with operator(kube, tmp_path) as controller:
        controller.core.fleet.add_replica("gateway-0", 0, 9, T0)
        for uid in ("uid-peak", "uid-of-nobody"):
            delivery = control_pb2.Delivery(dispatch_uid=uid, written_us=T0)
            controller.core.fleet.note_delivery("gateway-0", delivery)

        controller.core.forget_strangers()

        assert controller.core.fleet.known_uids() == {"uid-peak"}


# While running


async def test_what_was_read_before_stands_while_it_cannot_be_read(tmp_path: Path) -> None:
    kube = HostileKube(everything())

    async with operator(kube, tmp_path) as controller:
        before = held(controller)
        for kind, name in ((Kind.ASSET, "battery"), (Kind.DISPATCH, "peak")):
            bad = kube.find(kind, "pilot", name)
            bad["metadata"]["resourceVersion"], bad["spec"] = "900", None
            controller.core.take(kind, bad)
        await until(lambda: {e[1] for e in kube.events} >= {"battery", "peak"})

        assert held(controller) == before
        assert unread(controller) == {}
        assert counted(Kind.DISPATCH) == 1

        controller.core.take(Kind.DISPATCH, {**bad, "spec": dispatch()["spec"]})
        assert counted(Kind.DISPATCH) == 1, "an older word healed it"

        newer = {**bad["metadata"], "resourceVersion": "901"}
        controller.core.take(Kind.DISPATCH, {**bad, "metadata": newer, "spec": dispatch()["spec"]})
        assert counted(Kind.DISPATCH) == 0


async def test_it_is_told_once_for_each_version(tmp_path: Path) -> None:
    kube = HostileKube()
    bad = dispatch(phase="Levitating")

    async with operator(kube, tmp_path) as controller:
        for version in ("11", "11", "12"):
            controller.core.take(Kind.DISPATCH, {**bad, "metadata": bad["metadata"] | {
                "resourceVersion": version}})  # fmt: skip
        await until(lambda: len(kube.events) == 2)
        assert controller.events._queue.empty()


async def test_what_cannot_be_read_and_is_deleted_is_let_go_of(tmp_path: Path) -> None:
    going = dispatch(phase="Levitating")
    going["metadata"]["deletionTimestamp"] = format_second(T0 - 10**15)
    kube = HostileKube([(Kind.ASSET, asset()), (Kind.DISPATCH, going)])

    async with operator(kube, tmp_path) as controller:
        assert unread(controller) == {"uid-peak": "battery"}
        await controller.core.reconcile(key_of(Kind.DISPATCH, "peak"))

        assert going["metadata"]["finalizers"] == []
        await until(lambda: ("Dispatch", "peak", "RevertUnknown") in kube.events)


async def test_a_request_that_vanishes_before_its_answer_takes_no_asset_along(
    tmp_path: Path,
) -> None:
    kube = HostileKube([(Kind.ASSET, asset()), (Kind.CERTIFICATE, certificate())])

    async with operator(kube, tmp_path) as controller:
        forged = request("made-by-hand", username="jane")
        forged["status"] = {}
        controller.core.take(Kind.REQUEST, forged)  # there is none in the API server any more
        await controller.core.reconcile(key_of(Kind.ASSET, "battery"))

        assert controller.core.cache.asset("pilot", "battery") is not None
        assert controller.core.cache.fact(key_of(Kind.REQUEST, "made-by-hand")) is None


# Whether it lives


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("failure", "overdue"),
    [
        (ApiException(status=403, reason="forbidden"), True),
        (ApiException(status=503, reason="etcd is away"), False),
        (ConnectionRefusedError(), False),
    ],
)
async def test_only_a_list_that_does_not_finish_while_the_api_server_answers_is_fatal(
    failure: Exception, overdue: bool
) -> None:
    from derops_operator.cluster.cache import Cache

    clock, kube = Clock(), HostileKube()
    resync = Resync(kube, Cache(), lambda *_: None, lambda *_: None, clock)  # type: ignore[arg-type]
    kube.failure = failure

    for clock.now in (0.0, 150.0, 299.0):
        with pytest.raises(type(failure)):
            await resync.run()
        assert not resync.is_overdue(300)
    clock.now = 301.0
    assert resync.is_overdue(300) is overdue

    kube.failure = None
    await resync.run()
    assert not resync.is_overdue(300)


async def test_time_without_an_api_server_does_not_count() -> None:
    from derops_operator.cluster.cache import Cache

    clock, kube = Clock(), HostileKube()
    resync = Resync(kube, Cache(), lambda *_: None, lambda *_: None, clock)  # type: ignore[arg-type]
    await resync.run()
    kube.failure = ConnectionRefusedError()
    clock.now = 10_000.0
    with pytest.raises(ConnectionRefusedError):
        await resync.run()
    assert not resync.is_overdue(1860)

    kube.failure = ApiException(status=403)
    with pytest.raises(ApiException):
        await resync.run()
    clock.now = 11_000.0
    assert not resync.is_overdue(1860), "counted from when it answered again"


# Anything


DEEP = "a list in a list, 3,000 times"
"""Stands for it, as it cannot even be printed."""


def deepened(value: Any) -> Any:
    if value == DEEP:
        inner: list[Any] = []
        for _ in range(3000):
            inner = [inner]
        return inner
    if isinstance(value, dict):
        return {name: deepened(each) for name, each in value.items()}
    return [deepened(each) for each in value] if isinstance(value, list) else value


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**70), 10**400, 1e300, float("inf"), float("nan")]),
    st.text(max_size=20),
    st.sampled_from(
        [
            "9" * 5000,
            "٣" * 20,
            "\ud800",
            "x\0y",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999Z",
            "0001-01-01T00:00:00+14:00",
            "2026-01-01T00:00:00" + "1" * 5000,
            "Levitating",
            "9" * 400 + "h",
            "True",
        ]
    ),
    st.just([]),
    st.just({}),
    st.just(DEEP),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=3),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where something stands in a manifest."""
    found = [path] if path else []
    if isinstance(value, dict):
        found += [place for name in value for place in places(value[name], (*path, name))]
    if isinstance(value, list):
        found += [place for n, each in enumerate(value) for place in places(each, (*path, n))]
    return found


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Kind, Any]:
    kind, good = draw(st.sampled_from(everything()))
    manifest: Any = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(manifest)))
        inner = manifest
        try:
            for step in path[:-1]:
                inner = inner[step]
            if draw(st.booleans()) and isinstance(inner, dict):
                del inner[path[-1]]
            else:
                inner[path[-1]] = draw(ANYTHING)
        except (KeyError, TypeError, IndexError):  # an earlier change took it away
            continue
    return kind, manifest


_NAMES: dict[Kind, str] = {kind: good["metadata"]["name"] for kind, good in everything()}
MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MANY
@given(bad=mutated())
async def test_no_object_of_one_tenant_touches_another_at_the_start(
    bad: tuple[Kind, Any], tmp_path: Path
) -> None:
    kind, manifest = bad[0], deepened(bad[1])
    others = [each for each in everything() if each[0] is not kind]
    kube = HostileKube([(kind, manifest), *others, *neighbour()])

    async with operator(kube, tmp_path) as controller:
        assert {"uid-other-elsewhere", "uid-theirs-elsewhere"} <= held(controller)
        known = identify(kind, manifest)
        if known is not None and known[0] == key_of(kind, _NAMES[kind]):
            spared = {"uid-peak", "uid-battery"} - {f"uid-{_NAMES[kind]}"}
            assert spared <= held(controller) | unread(controller).keys()
        await until(lambda: len(controller.queue) == 0)
        assert controller.alive


@settings(MANY, max_examples=50)
@given(bad=st.lists(mutated(), min_size=1, max_size=3))
async def test_no_object_of_one_tenant_touches_another_while_running(
    bad: list[tuple[Kind, Any]], tmp_path: Path
) -> None:
    kube = HostileKube([*everything(), *neighbour()])

    async with operator(kube, tmp_path) as controller:
        for number, (kind, drawn) in enumerate(bad):
            manifest = deepened(drawn)
            if isinstance(manifest.get("metadata"), dict):
                manifest["metadata"]["resourceVersion"] = str(1000 + number)
            controller.core.take(kind, manifest)
        theirs = {"uid-other-elsewhere", "uid-theirs-elsewhere"}
        await until(lambda: len(controller.queue) == 0)
        await asyncio.sleep(0)

        assert theirs <= held(controller)
        assert controller.alive


def pem(label: str, der: bytes) -> str:
    body = base64.encodebytes(der).decode()
    text = f"-----BEGIN {label}-----\n{body}-----END {label}-----\n"
    return base64.b64encode(text.encode()).decode()


def der_of(encoded: str, load: Callable[[bytes], Any]) -> bytes:
    found: bytes = load(base64.b64decode(encoded)).public_bytes(Encoding.DER)
    return found


CSR = der_of(csr(), x509.load_pem_x509_csr)
ISSUED = der_of(certificate_pem(7), x509.load_pem_x509_certificate)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), chain=st.booleans())
def test_no_byte_of_a_request_or_a_certificate_throws(data: st.DataObject, chain: bool) -> None:
    der = bytearray(ISSUED if chain else CSR)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(der)), st.integers(0, len(der))))
    subject = request()
    if chain:
        subject["status"]["certificate"] = pem("CERTIFICATE", bytes(der[:cut]))
    else:
        subject["spec"]["request"] = pem("CERTIFICATE REQUEST", bytes(der[:cut]))

    found = read_fact(Kind.REQUEST, subject, 0)

    assert isinstance(found, Request)
    assert bool(found.problem) == (found.csr is None or found.issued is None)


def test_a_signing_request_of_version_one_counts_as_absent_and_is_told() -> None:
    version = CSR.index(b"\x02\x01\x00")
    der = CSR[:version] + b"\x02\x01\x01" + CSR[version + 3 :]

    found = read_fact(Kind.REQUEST, request(request=pem("CERTIFICATE REQUEST", der)), 0)

    assert isinstance(found, Request)
    assert found.csr is None
    assert "spec.request: InvalidVersion" in found.problem


def test_a_signing_request_of_a_megabyte_is_not_even_parsed() -> None:
    found = read_fact(Kind.REQUEST, request(request="QUJD" * 250_000), 0)

    assert isinstance(found, Request)
    assert "1000000 characters" in found.problem


def test_a_panic_of_a_parser_is_caught_and_the_end_of_the_program_is_not() -> None:
    class PanicError(BaseException):
        pass

    def panic() -> None:
        raise PanicError("called `Result::unwrap()` on an `Err` value")

    def stop() -> None:
        raise KeyboardInterrupt

    assert attempt(panic)[1].startswith("PanicError: called")
    with pytest.raises(KeyboardInterrupt):
        attempt(stop)


def test_what_says_nothing_of_itself_is_unreadable_too() -> None:
    nothings: list[Manifest] = [{}, {"metadata": None}, {"metadata": {"name": 5}}]
    for kind in Kind:
        for manifest in nothings:
            assert isinstance(read_fact(kind, manifest, 0), Unreadable)
