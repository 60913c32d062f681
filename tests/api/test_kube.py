"""The API's side of Kubernetes, on a real API server."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import kubernetes
import pytest
from tests.crds import dispatch_rules
from tests.crds.api import Api
from tests.crds.manifests import BATTERY, DISPATCH, merged
from tests.stack.controlplane import ControlPlane
from tests.waiting import until

from derops.observability import Readiness
from derops_headend.api.assets import view_of
from derops_headend.api.connection import read_configuration
from derops_headend.api.kube import Kube
from derops_headend.api.ports import Existence
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.refusals import pointer

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def client(kube: ControlPlane) -> Iterator[Any]:
    with kubernetes.config.new_client_from_config(kube.kubeconfig) as opened:
        yield opened


@pytest.fixture
def namespace(client: Any) -> str:
    name = f"api-kube-{next(_numbers)}"
    kubernetes.client.CoreV1Api(client).create_namespace({"metadata": {"name": name}})
    return name


@pytest.fixture
def admin(client: Any, namespace: str) -> Api:
    """Return our kinds as an administrator writes them, beside the API."""
    return Api(client, namespace)


@pytest.fixture
async def ours(kube: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    monkeypatch.setenv("KUBECONFIG", kube.kubeconfig)
    opened = Kube(await read_configuration(), Readiness())
    running = asyncio.create_task(opened.run())
    try:
        await until(lambda: opened.ready)
        yield opened
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await opened.close()
        # A watch that was cancelled while it was opened says its farewell by TLS: hear it out.
        loop = asyncio.get_running_loop()
        open_ = loop._transports.values  # type: ignore[attr-defined]
        await until(lambda: all(each._sock is None for each in open_()))


def manifest(name: str = "peak", **spec: Any) -> dict[str, Any]:
    return merged(DISPATCH, {"metadata": {"name": name}, "spec": spec})


async def test_an_asset_is_known_as_it_is(ours: Kube, admin: Api, namespace: str) -> None:
    made = merged(BATTERY, {"metadata": {"labels": {"site": "north"}}})
    stored = admin.create(made)
    await until(lambda: ours.asset(namespace, "battery-7"))
    known = ours.asset(namespace, "battery-7")
    assert known is not None
    assert known.uid == stored["metadata"]["uid"]
    assert known.labels == {"site": "north"}
    view = view_of(known)
    assert view.spec is not None
    assert view.spec.ratings.max_injection_watts == made["spec"]["ratings"]["maxInjectionWatts"]
    assert namespace in ours.known_namespaces()
    admin.patch(stored, {"spec": {"operatingState": "OutOfService"}})
    await until(lambda: ours.assets([namespace])[0].operating_state == "OutOfService")
    admin.delete("DERAsset", "battery-7")
    await until(lambda: ours.asset(namespace, "battery-7") is None)
    assert namespace not in ours.known_namespaces()


async def test_an_asset_of_any_depth_is_read_with_all_others(
    kube: ControlPlane, ours: Kube, admin: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both as the watch tells it and as a list does."""
    metadata = {"name": "deep", "namespace": namespace, "managedFields": "FIELDS"}
    deep = merged(BATTERY, {"metadata": metadata})
    fields = '{"f:x":' * 9000 + "{}" + "}" * 9000
    text = json.dumps(deep).replace(
        '"FIELDS"',
        '[{"manager":"me","operation":"Update","apiVersion":"derops.io/v1alpha1",'
        f'"fieldsType":"FieldsV1","fieldsV1":{fields}}}]',
    )
    path = f"/apis/derops.io/v1alpha1/namespaces/{namespace}/derassets"
    kube.kubectl("create", "--raw", path, "-f", "-", stdin=text)
    assert kube.kubectl("get", "--raw", f"{path}/deep").count("f:x") == 9000
    admin.create(merged(BATTERY, {"metadata": {"name": "beside"}}))
    await until(lambda: len(ours.assets([namespace])) == 2)

    anew = Kube(await read_configuration(), Readiness())
    running = asyncio.create_task(anew.run())
    await until(lambda: anew.ready)
    assert {each.name for each in anew.assets([namespace])} == {"deep", "beside"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await anew.close()


async def test_a_dispatch_is_made_read_changed_and_listed(ours: Kube, namespace: str) -> None:
    made = await ours.create_dispatch(namespace, manifest(), dry_run=False)
    read = await ours.dispatch(namespace, "peak")
    assert read is not None
    assert read["metadata"]["uid"] == made["metadata"]["uid"]
    changed = await ours.patch_dispatch(read, {"desiredState": "Cancelled"})
    assert changed["spec"]["desiredState"] == "Cancelled"
    with pytest.raises(ProblemError) as stale:
        await ours.patch_dispatch(read, {"ttlSecondsAfterFinished": 5})
    assert stale.value.slug is Slug.CONFLICT
    page = await ours.dispatches(
        namespace, limit=5, after=None, selector={"spec.desiredState": "Cancelled"}
    )
    assert [each["metadata"]["name"] for each in page.items] == ["peak"]
    assert page.next is None


async def test_another_object_of_the_name_is_not_changed(
    ours: Kube, admin: Api, namespace: str
) -> None:
    first = await ours.create_dispatch(namespace, manifest(), dry_run=False)
    admin.delete("Dispatch", "peak")
    second = await ours.create_dispatch(namespace, manifest(), dry_run=False)
    first["metadata"]["resourceVersion"] = second["metadata"]["resourceVersion"]
    with pytest.raises(ProblemError) as other:
        await ours.patch_dispatch(first, {"desiredState": "Cancelled"})
    assert other.value.slug is Slug.CONFLICT


async def test_a_dry_run_makes_nothing(ours: Kube, namespace: str) -> None:
    await ours.create_dispatch(namespace, manifest(), dry_run=True)
    assert await ours.dispatch(namespace, "peak") is None


async def test_a_name_that_is_taken_is_a_conflict(ours: Kube, namespace: str) -> None:
    await ours.create_dispatch(namespace, manifest(), dry_run=False)
    with pytest.raises(ProblemError) as taken:
        await ours.create_dispatch(namespace, manifest(), dry_run=False)
    assert taken.value.slug is Slug.CONFLICT


async def test_a_list_comes_in_pages(ours: Kube, namespace: str) -> None:
    for number in range(5):
        await ours.create_dispatch(namespace, manifest(f"d{number}"), dry_run=False)
    names, after = [], None
    while True:
        page = await ours.dispatches(namespace, limit=2, after=after, selector={})
        names += [each["metadata"]["name"] for each in page.items]
        after = page.next
        if after is None:
            break
    assert names == [f"d{number}" for number in range(5)]
    with pytest.raises(ProblemError) as junk:
        await ours.dispatches(namespace, limit=2, after="junk", selector={})
    assert (junk.value.slug, junk.value.faults[0].parameter) == (Slug.INVALID, "after")


async def test_nothing_is_made_where_there_is_no_namespace(ours: Kube) -> None:
    with pytest.raises(ProblemError) as nowhere:
        await ours.create_dispatch("no-such-namespace", manifest(), dry_run=False)
    assert nowhere.value.slug is Slug.NOT_FOUND


async def test_what_never_was_is_known_to_have_never_been(ours: Kube, namespace: str) -> None:
    version = ours.dispatch_version()
    await ours.create_dispatch(namespace, manifest("other"), dry_run=False)
    assert await ours.life_of(namespace, "peak", version) is Existence.NEVER_WAS


async def test_what_was_and_is_gone_is_known_to_have_been(
    ours: Kube, admin: Api, namespace: str
) -> None:
    version = ours.dispatch_version()
    await ours.create_dispatch(namespace, manifest(), dry_run=False)
    assert await ours.life_of(namespace, "peak", version) is Existence.WAS_THERE
    admin.delete("Dispatch", "peak")
    assert await ours.dispatch(namespace, "peak") is None
    assert await ours.life_of(namespace, "peak", version) is Existence.WAS_THERE


@pytest.mark.parametrize("version", ["", "1", "junk", "-5"])
async def test_what_the_api_server_forgot_is_not_guessed(
    ours: Kube, namespace: str, version: str
) -> None:
    assert await ours.life_of(namespace, "peak", version) is Existence.UNKNOWN


OF_DISPATCHES = [*dispatch_rules.EXPRESSIONS, *dispatch_rules.BOUNDS]


async def test_each_rule_of_a_dispatch_is_told_by_a_pointer_and_without_what_was_sent(
    ours: Kube, namespace: str
) -> None:
    """All rules in one: each refusal is a call, and the API server is the same."""
    for rule in OF_DISPATCHES:
        with pytest.raises(ProblemError) as refused:
            await ours.create_dispatch(namespace, merged(DISPATCH, rule.refused), dry_run=True)
        problem = refused.value
        assert problem.slug is Slug.INVALID, rule
        told = {each.pointer: each.detail for each in problem.faults}
        expected = pointer(rule.path)
        assert any(str(expected).startswith(str(each)) for each in told), (rule, told)
        for sent in (each for each in values(rule.refused) if each not in rule.message):
            assert not any(sent in detail for detail in told.values()), (rule, told)


async def test_an_api_without_a_right_does_not_blame_its_caller(
    kube: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kube.service_account_kubeconfig(namespace, "default"))
    opened = Kube(await read_configuration(), Readiness())
    try:
        with pytest.raises(ProblemError) as refused:
            await opened.namespace_made_at(namespace)
    finally:
        await opened.close()

    assert refused.value.slug is Slug.KUBERNETES_UNAVAILABLE
    assert "get namespaces" in refused.value.detail


async def test_a_field_that_this_crd_does_not_have_is_told(ours: Kube, namespace: str) -> None:
    with pytest.raises(ProblemError) as refused:
        await ours.create_dispatch(namespace, manifest(colour="red"), dry_run=True)
    assert [(each.pointer, each.code) for each in refused.value.faults] == [
        ("/colour", "UnknownField")
    ]


def values(patch: Any) -> list[str]:
    """Return the texts of a patch that are long enough to be told from words of the API server."""
    if isinstance(patch, dict):
        return [found for each in patch.values() for found in values(each)]
    return [patch] if isinstance(patch, str) and len(patch) > 8 else []
