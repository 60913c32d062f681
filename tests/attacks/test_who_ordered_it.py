"""Attacks on who ordered a Dispatch, by those who may write Dispatches."""

import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.attacks.kubernetes_callers import (
    ANNOTATION,
    APPLY,
    DISPATCHES,
    JSON_PATCH,
    MERGE,
    REQUEST_ID,
    REQUEST_SHA256,
    TENANT,
    Caller,
    Cluster,
    Manifest,
    cluster,
    created_by,
    dispatch,
)
from tests.operator.hostile import operator
from tests.stack.identities import install_creator_policies, program_kubeconfig
from tests.stack.processes import StackError
from tests.waiting import until

from derops.observability import Readiness
from derops.schedules import SECOND_US
from derops_operator.cluster.client import Kube
from derops_operator.resources.dispatches import CREATOR_LIMIT, Dispatch
from derops_operator.resources.manifests import read_fact
from derops_operator.resources.objects import Kind
from derops_operator.trust.creators import Creators

POINTER = f"/metadata/annotations/{ANNOTATION.replace('/', '~1')}"
FORGED = {"metadata": {"annotations": {ANNOTATION: "cfo"}}}
CANCEL = {"spec": {"desiredState": "Cancelled"}}

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def stamped() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(scope="module")
def unstamped() -> Iterator[Cluster]:
    """Return a cluster as it is where the API server knows no mutating policies."""
    with cluster(stamped=False) as running:
        yield running


@pytest.fixture
def name() -> str:
    return f"peak-{next(_numbers)}"


@pytest.fixture
def ordered(stamped: Cluster, name: str) -> str:
    """Return the name of a dispatch that the author made."""
    assert stamped.author.create(dispatch(name)).status_code == 201
    return name


def refused(answer: httpx.Response, why: str) -> None:
    assert answer.status_code == 403, answer.text
    assert "ValidatingAdmissionPolicy 'derops-creator'" in answer.json()["message"]
    assert why in answer.json()["message"]


Way = Callable[[Caller, Manifest], None]


def by_post(caller: Caller, manifest: Manifest) -> None:
    assert caller.create(manifest).status_code == 201


def by_create(caller: Caller, manifest: Manifest) -> None:
    caller.kubectl("create", "-f", "-", stdin=json.dumps(manifest))


def by_list(caller: Caller, manifest: Manifest) -> None:
    together = {"apiVersion": "v1", "kind": "List", "items": [manifest]}
    caller.kubectl("create", "-f", "-", stdin=json.dumps(together))


def by_apply(caller: Caller, manifest: Manifest) -> None:
    caller.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


def by_server_side_apply(caller: Caller, manifest: Manifest) -> None:
    assert caller.patch(manifest["metadata"]["name"], manifest, APPLY).status_code == 201


WAYS: list[Way] = [by_post, by_create, by_list, by_apply, by_server_side_apply]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "said",
    [None, "cfo", "", "unknown", "x" * 100_000],
    ids=["nothing", "a name", "empty", "unknown", "long"],
)
def test_a_new_dispatch_says_who_made_it_whatever_its_manifest_says(
    stamped: Cluster, name: str, way: Way, said: str | None
) -> None:
    """R70: an author orders in another's name, or in nobody's."""
    way(stamped.author, dispatch(name, said))

    assert stamped.read(name) == stamped.author.user


def test_a_generated_name_is_stamped_too(stamped: Cluster) -> None:
    manifest = dispatch("", "cfo")
    manifest["metadata"] |= {"generateName": "peak-of-"}
    del manifest["metadata"]["name"]

    answer = stamped.author.create(manifest)

    assert created_by(answer.json()) == stamped.author.user


def test_a_dry_run_shows_what_would_be(stamped: Cluster, name: str) -> None:
    answer = stamped.author.http.post(
        DISPATCHES, json=dispatch(name, "cfo"), params={"dryRun": "All"}
    )

    assert created_by(answer.json()) == stamped.author.user


CHANGES = {
    "merge patch": (MERGE, FORGED),
    "JSON patch": (JSON_PATCH, [{"op": "replace", "path": POINTER, "value": "cfo"}]),
    "empty": (MERGE, {"metadata": {"annotations": {ANNOTATION: ""}}}),
    "apply": (APPLY, dispatch("", "cfo")),
}


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize("who", ["author", "gitops", "api"])
def test_nobody_changes_it(stamped: Cluster, ordered: str, way: str, who: str) -> None:
    """R71: an author, an administrator or the API's account makes it somebody else's later."""
    kind, body = CHANGES[way]
    if isinstance(body, dict) and "spec" in body:
        body = body | {"metadata": body["metadata"] | {"name": ordered}}

    refused(getattr(stamped, who).patch(ordered, body, kind), "nobody changes who ordered")
    assert stamped.read(ordered) == stamped.author.user


def test_nobody_changes_it_by_replacing_all(stamped: Cluster, ordered: str) -> None:
    """R72: the change comes in a replacement of the whole object, or beside a cancel."""
    manifest = stamped.author.get(ordered)
    manifest["metadata"]["annotations"][ANNOTATION] = "cfo"

    refused(stamped.author.replace(manifest), "nobody changes who ordered")
    refused(stamped.author.patch(ordered, FORGED | CANCEL), "nobody changes who ordered")
    assert stamped.read(ordered) == stamped.author.user


REMOVALS = {
    "merge patch": (MERGE, {"metadata": {"annotations": {ANNOTATION: None}}} | CANCEL),
    "all annotations": (MERGE, {"metadata": {"annotations": None}} | CANCEL),
    "JSON patch": (
        JSON_PATCH,
        [
            {"op": "remove", "path": POINTER},
            {"op": "replace", "path": "/spec/desiredState", "value": "Cancelled"},
        ],
    ),
}


@pytest.mark.parametrize("way", REMOVALS)
def test_what_is_taken_away_comes_back_and_the_cancel_beside_it_counts(
    stamped: Cluster, ordered: str, way: str
) -> None:
    """R73: an author takes it away; but an update that lacks it is never refused for that."""
    kind, body = REMOVALS[way]

    answer = stamped.author.patch(ordered, body, kind)

    assert answer.status_code == 200, answer.text
    assert created_by(answer.json()) == stamped.author.user
    assert answer.json()["spec"]["desiredState"] == "Cancelled"


def test_a_replacement_that_lacks_it_gets_it_back(stamped: Cluster, ordered: str) -> None:
    manifest = stamped.author.get(ordered)
    del manifest["metadata"]["annotations"]

    answer = stamped.author.replace(manifest)

    assert answer.status_code == 200, answer.text
    assert created_by(answer.json()) == stamped.author.user


@pytest.mark.parametrize("whole", [False, True], ids=["patch", "replace"])
def test_a_write_of_the_status_changes_no_annotation(
    stamped: Cluster, ordered: str, whole: bool
) -> None:
    """R74: whoever may write the status changes it by that subresource."""
    manifest = stamped.gitops.get(ordered)
    manifest["metadata"]["annotations"] = {ANNOTATION: "cfo"}
    manifest["status"]["message"] = "written"

    answer = (
        stamped.gitops.replace(manifest, status=True)
        if whole
        else stamped.gitops.patch(ordered, FORGED | {"status": {"message": "written"}}, status=True)
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["status"]["message"] == "written"
    assert created_by(answer.json()) == stamped.author.user


def test_a_write_of_the_status_without_it_is_taken(stamped: Cluster, ordered: str) -> None:
    manifest = stamped.gitops.get(ordered)
    del manifest["metadata"]["annotations"]

    assert stamped.gitops.replace(manifest, status=True).status_code == 200
    assert stamped.read(ordered) == stamped.author.user


def test_what_the_status_says_never_changes(stamped: Cluster, ordered: str) -> None:
    """R75: whoever may write the status makes it somebody else's there."""
    first = stamped.gitops.patch(ordered, {"status": {"createdBy": "alice"}}, status=True)
    assert first.status_code == 200

    answer = stamped.gitops.patch(ordered, {"status": {"createdBy": "cfo"}}, status=True)

    assert answer.status_code == 422
    assert "createdBy cannot change once it is set" in answer.json()["message"]


def test_the_api_says_for_whom_it_orders(stamped: Cluster, name: str) -> None:
    answer = stamped.api.create(dispatch(name, "oidc:Zoë <zoe@example.org> 'x' \"y\""))

    assert answer.status_code == 201
    assert stamped.read(name) == "oidc:Zoë <zoe@example.org> 'x' \"y\""


def test_the_api_says_as_long_a_name_as_the_status_keeps(stamped: Cluster, name: str) -> None:
    by_post(stamped.api, dispatch(name, "x" * CREATOR_LIMIT))

    status = {"status": {"createdBy": stamped.read(name)}}
    assert stamped.gitops.patch(name, status, status=True).status_code == 200


@pytest.mark.parametrize("said", [None, "", "x" * 513], ids=["nothing", "empty", "too long"])
def test_the_api_orders_nothing_in_nobodys_name(
    stamped: Cluster, name: str, said: str | None
) -> None:
    """R76: a fault of the API, or a thief of its token, orders without a name."""
    refused(stamped.api.create(dispatch(name, said)), "in 1 to 512 characters")


def test_the_api_cancels_without_a_word_about_it(stamped: Cluster, ordered: str) -> None:
    answer = stamped.api.patch(ordered, CANCEL)

    assert answer.status_code == 200
    assert created_by(answer.json()) == stamped.author.user


@pytest.mark.parametrize(
    "command",
    [
        ["apply", "-f", "-"],
        ["apply", "--server-side", "--force-conflicts", "-f", "-"],
        ["replace", "-f", "-"],
    ],
    ids=["apply", "forced sync", "replace"],
)
def test_a_sync_that_knows_nothing_of_it_is_never_refused(
    stamped: Cluster, name: str, command: list[str]
) -> None:
    """R77: what a GitOps tool applies again takes it away, or makes the tool its creator."""
    by_post(stamped.author, dispatch(name))
    again = json.dumps(dispatch(name, ttlSecondsAfterFinished=60))

    for _ in range(2):
        stamped.gitops.kubectl(*command, stdin=again)
        assert stamped.read(name) == stamped.author.user


def test_a_manifest_in_git_that_claims_a_name_is_not_believed(stamped: Cluster, name: str) -> None:
    claim = json.dumps(dispatch(name, "cfo"))
    apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"]

    stamped.gitops.kubectl(*apply, stdin=claim)

    assert stamped.read(name) == stamped.gitops.user
    with pytest.raises(StackError, match="nobody changes who ordered"):
        stamped.gitops.kubectl(*apply, stdin=claim)


def test_what_is_made_anew_says_who_made_it_anew(stamped: Cluster, ordered: str) -> None:
    """R78: an author has another's order run again, still in that one's name."""
    before = stamped.author.get(ordered)

    stamped.gitops.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(before))

    after = stamped.author.get(ordered)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert created_by(after) == stamped.gitops.user


def test_who_may_act_as_somebody_orders_as_that_one_and_nobody_else_may(
    stamped: Cluster, name: str
) -> None:
    """R79: an author asks to be taken for another."""
    header = {"Impersonate-User": "cfo@example.org"}
    assert stamped.author.create(dispatch(name), **header).status_code == 403

    header |= {"Impersonate-Group": "system:masters"}
    assert stamped.author.create(dispatch(name), **header).status_code == 403
    assert stamped.gitops.create(dispatch(name), **header).status_code == 201
    assert stamped.read(name) == "cfo@example.org"


@pytest.mark.parametrize(
    "user",
    ["a b:c/d@e#f'g\"h\\i{{j}}", "unknown", "x" * 5000, "${params.x}%s<script>"],
    ids=["quotes", "unknown", "long", "templates"],
)
def test_a_user_with_an_odd_name_is_told_as_it_is(stamped: Cluster, name: str, user: str) -> None:
    """R80: a name breaks the policy, or the manifest that it is put into."""
    header = {"Impersonate-User": user, "Impersonate-Group": "system:masters"}

    assert stamped.gitops.create(dispatch(name), **header).status_code == 201
    assert stamped.read(name) == user


@pytest.mark.parametrize("role", ["edit", "admin", "derops-dispatcher", "derops-asset-admin"])
def test_nobody_takes_the_policies_away(stamped: Cluster, role: str) -> None:
    """R81: whoever has a role in a namespace deletes or changes the policies."""
    user = f"with-{role}"
    stamped.control_plane.kubectl(
        "create", "rolebinding", user, "-n", TENANT, f"--clusterrole={role}", f"--user={user}"
    )
    for kind in ("validating", "mutating"):
        for what in ("policies", "policybindings"):
            for verb in ("delete", "patch", "update", "create"):
                with pytest.raises(StackError):
                    stamped.control_plane.kubectl(
                        "auth", "can-i", verb, f"{kind}admission{what}", f"--as={user}"
                    )


def test_orphans_and_finalizers_leave_it_alone(stamped: Cluster, ordered: str) -> None:
    changed = stamped.gitops.patch(ordered, {"metadata": {"finalizers": ["derops.io/in-flight"]}})
    assert created_by(changed.json()) == stamped.author.user
    assert stamped.gitops.http.delete(f"{DISPATCHES}/{ordered}").status_code == 200

    released = stamped.gitops.patch(ordered, {"metadata": {"finalizers": None}})

    assert released.status_code == 200
    assert stamped.gitops.http.get(f"{DISPATCHES}/{ordered}").status_code == 404


# By which request of the API

REQUEST = {REQUEST_ID: "7f0e6a5c", REQUEST_SHA256: "5e" * 32}


def of_a_request(name: str, **said: str) -> Manifest:
    """Return a Dispatch that says which request of the API ordered it."""
    manifest = dispatch(name)
    manifest["metadata"]["annotations"] = {**REQUEST, **said}
    return manifest


@pytest.fixture
def requested(stamped: Cluster, name: str) -> str:
    """Return the name of a dispatch that the API made for somebody."""
    by_post(stamped.api, of_a_request(name, **{ANNOTATION: "alice"}))
    assert stamped.annotations(name) == {**REQUEST, ANNOTATION: "alice"}
    return name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", ["author", "gitops"])
def test_nobody_but_the_api_says_which_request_ordered_it(
    stamped: Cluster, name: str, way: Way, who: str
) -> None:
    """R160: an author has an auditor find somebody else's record, or the API take it for its own.

    It is taken out and not refused: "kubectl replace --force" deletes first, and then creates.
    """
    caller: Caller = getattr(stamped, who)

    way(caller, of_a_request(name, **{ANNOTATION: "alice", "note": "kept"}))

    found = stamped.annotations(name)
    assert not REQUEST.keys() & found.keys()
    assert (found[ANNOTATION], found["note"]) == (caller.user, "kept")


def test_an_order_of_the_api_that_is_made_anew_is_of_no_request(
    stamped: Cluster, requested: str
) -> None:
    """R161: an author makes an order of another's request anew, which keeps its marks."""
    before = stamped.author.get(requested)

    stamped.gitops.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(before))

    assert not REQUEST.keys() & stamped.annotations(requested).keys()
    assert stamped.read(requested) == stamped.gitops.user


@pytest.mark.parametrize("which", REQUEST)
@pytest.mark.parametrize("who", ["author", "gitops", "api"])
def test_nobody_changes_or_adds_by_which_request(
    stamped: Cluster, requested: str, which: str, who: str
) -> None:
    """R162: an author, an administrator or the API's account says so later."""
    caller: Caller = getattr(stamped, who)
    forged = {"metadata": {"annotations": {which: "another"}}}
    own = f"{requested}-own"
    by_post(stamped.author, dispatch(own))
    whole = stamped.author.get(requested)
    whole["metadata"]["annotations"][which] = "another"

    refused(caller.patch(requested, forged), f"Leave out {which}")
    refused(caller.patch(own, forged | CANCEL), f"Leave out {which}")
    if who != "api":  # which may not replace
        refused(caller.replace(whole), f"Leave out {which}")

    assert stamped.annotations(requested) == {**REQUEST, ANNOTATION: "alice"}
    assert not REQUEST.keys() & stamped.annotations(own).keys()


@pytest.mark.parametrize("lost", [[REQUEST_ID], [REQUEST_SHA256], [*REQUEST, ANNOTATION]])
def test_by_which_request_comes_back_where_an_update_lacks_it(
    stamped: Cluster, requested: str, lost: list[str]
) -> None:
    """R163: an author takes it away; but an update that lacks it is never refused for that."""
    manifest = stamped.author.get(requested)
    for each in lost:
        del manifest["metadata"]["annotations"][each]
    manifest["spec"]["desiredState"] = "Cancelled"

    answer = stamped.author.replace(manifest)

    assert answer.status_code == 200, answer.text
    assert answer.json()["spec"]["desiredState"] == "Cancelled"
    assert stamped.annotations(requested) == {**REQUEST, ANNOTATION: "alice"}


# Without mutating policies


@pytest.mark.parametrize("which", REQUEST)
def test_without_a_stamp_nobody_but_the_api_says_by_which_request(
    unstamped: Cluster, name: str, which: str
) -> None:
    """R164: an author says, or changes, which request ordered it where nothing takes it out."""
    manifest = dispatch(name)
    manifest["metadata"]["annotations"] = {which: "another"}
    refused(unstamped.author.create(manifest), "says which request ordered")
    by_post(unstamped.api, of_a_request(name, **{ANNOTATION: "alice"}))
    forged = {"metadata": {"annotations": {which: "another"}}}
    refused(unstamped.author.patch(name, forged), f"Leave out {which}")

    taken_away = {"metadata": {"annotations": {which: None}}}
    assert unstamped.author.patch(name, taken_away | CANCEL).status_code == 200
    refused(unstamped.author.patch(name, forged), f"Leave out {which}")


def test_without_a_stamp_a_name_is_refused(unstamped: Cluster, name: str) -> None:
    """R82: an author orders in another's name where nothing stamps."""
    for said in ("cfo", "", "unknown"):
        refused(unstamped.author.create(dispatch(name, said)), "Leave out the annotation")
    assert unstamped.author.create(dispatch(name)).status_code == 201
    assert unstamped.read(name) == ""


def test_without_a_stamp_a_name_is_never_added(unstamped: Cluster, name: str) -> None:
    """R83: an author adds a name later, or takes one away to put another there."""
    by_post(unstamped.author, dispatch(name))
    refused(unstamped.author.patch(name, FORGED), "nobody changes who ordered")
    refused(unstamped.api.patch(name, FORGED), "nobody changes who ordered")

    other = f"{name}-by-api"
    by_post(unstamped.api, dispatch(other, "alice"))
    manifest = unstamped.author.get(other)
    del manifest["metadata"]["annotations"]
    assert unstamped.author.replace(manifest).status_code == 200
    refused(unstamped.author.patch(other, FORGED), "nobody changes who ordered")


def test_without_a_stamp_the_api_says_for_whom_it_orders(unstamped: Cluster, name: str) -> None:
    by_post(unstamped.api, dispatch(name, "alice"))
    refused(unstamped.api.create(dispatch(f"{name}-b")), "in 1 to 512 characters")

    assert unstamped.read(name) == "alice"


# What the operator believes


class Reader:
    """Reads who ordered a dispatch as the operator does, with the operator's rights."""

    def __init__(self, kube: Kube) -> None:
        self.readiness = Readiness()
        self.creators = Creators(kube, self.readiness)
        self.kube = kube

    async def told(self, name: str) -> str:
        await self.creators.look()
        fact = read_fact(Kind.DISPATCH, await self.kube.read(Kind.DISPATCH, TENANT, name), 0)
        assert isinstance(fact, Dispatch)
        return fact.creator(self.creators.guarded_since_us)

    async def settled(self) -> None:
        """Wait until what is made now is believed."""
        await self.creators.look()
        since_us = self.creators.guarded_since_us
        assert since_us is not None
        await until(lambda: time.time_ns() // 1000 > since_us + SECOND_US, 30)


@pytest.fixture
async def reader(stamped: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    monkeypatch.setenv("KUBECONFIG", program_kubeconfig(stamped.control_plane, "operator"))
    kube = await Kube.connect()
    yield Reader(kube)
    await kube.close()


async def test_the_operator_believes_what_is_guarded(
    stamped: Cluster, reader: Reader, name: str
) -> None:
    await reader.settled()
    by_post(stamped.author, dispatch(name, "cfo"))
    by_post(stamped.api, dispatch(f"{name}-api", "alice"))

    assert await reader.told(name) == stamped.author.user
    assert await reader.told(f"{name}-api") == "alice"
    assert reader.readiness.report() == (True, "ok")


async def test_what_was_made_before_the_policies_is_not_believed(
    stamped: Cluster, reader: Reader, name: str
) -> None:
    """R84: an author orders in another's name while no policy is there, and is read later."""
    control_plane = stamped.control_plane
    for kind in ("validating", "mutating"):
        control_plane.kubectl("delete", f"{kind}admissionpolicybinding", "derops-creator")

    def forge() -> bool:
        stamped.author.http.delete(f"{DISPATCHES}/{name}")
        return created_by(stamped.author.create(dispatch(name, "cfo")).json()) == "cfo"

    try:
        await until(forge)
        assert await reader.told(name) == "unknown"
        assert "derops-creator is not installed" in reader.readiness.report()[1]
    finally:
        install_creator_policies(control_plane)

    assert await reader.told(name) == "unknown"
    assert reader.readiness.report() == (True, "ok")
    await reader.settled()
    assert await reader.told(name) == "unknown"


async def test_what_is_made_once_the_policies_are_gone_is_not_believed(
    stamped: Cluster, reader: Reader, name: str, tmp_path: Path
) -> None:
    """R165: an author orders in another's name as soon as an administrator took the policies."""
    control_plane = stamped.control_plane
    await reader.settled()

    async with operator(reader.kube, tmp_path) as controller:

        async def told(which: str) -> str:
            controller.core.take(Kind.DISPATCH, stamped.gitops.get(which))
            await until(lambda: "createdBy" in stamped.gitops.get(which).get("status", {}))
            return str(stamped.gitops.get(which)["status"]["createdBy"])

        by_post(stamped.api, dispatch(name, "alice"))
        assert await told(name) == "alice"
        forged = f"{name}-forged"
        for kind in ("validating", "mutating"):
            control_plane.kubectl("delete", f"{kind}admissionpolicybinding", "derops-creator")

        def forge() -> bool:
            stamped.author.http.delete(f"{DISPATCHES}/{forged}")
            return created_by(stamped.author.create(dispatch(forged, "cfo")).json()) == "cfo"

        try:
            await until(forge)
            assert await told(forged) == "unknown"
        finally:
            install_creator_policies(control_plane)


WEAKENED: dict[str, tuple[str, Manifest, Manifest]] = {
    "only audits": ("binding", {"validationActions": ["Audit"]}, {"validationActions": ["Deny"]}),
    "fails open": ("", {"failurePolicy": "Ignore"}, {"failurePolicy": "Fail"}),
    "leaves some out": (
        "",
        {"matchConditions": [{"name": "some", "expression": "false"}]},
        {"matchConditions": []},
    ),
}


@pytest.mark.parametrize("how", WEAKENED)
async def test_what_was_made_while_the_policy_was_weaker_is_not_believed(
    stamped: Cluster, reader: Reader, name: str, how: str
) -> None:
    """R166: an author orders while an administrator has the policy warn, and is read later."""
    kind, weak, strong = WEAKENED[how]
    await reader.settled()

    def change(spec: Manifest) -> None:
        body = json.dumps({"spec": spec})
        what = f"validatingadmissionpolicy{kind}"
        stamped.control_plane.kubectl("patch", what, "derops-creator", "--type=merge", "-p", body)

    by_post(stamped.author, dispatch(f"{name}-before"))
    assert await reader.told(f"{name}-before") == stamped.author.user
    change(weak)
    try:
        by_post(stamped.author, dispatch(name))
        assert await reader.told(name) == "unknown"
        assert "who ordered a dispatch" in reader.readiness.report()[1]
    finally:
        change(strong)

    assert await reader.told(name) == "unknown"
    assert reader.readiness.report() == (True, "ok")
