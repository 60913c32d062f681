"""``derops-operator uninstall`` against a real API server; operator and agents are played."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes
import pytest
from tests.crds.manifests import BATTERY, DISPATCH, merged
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import NAMESPACE
from tests.stack.processes import StackError
from tests.stack.uninstalling import (
    HEADEND,
    OPERATOR,
    UNINSTALL,
    USER,
    Pods,
    account,
    documented_commands,
    rules,
    start_uninstall,
    type_commands,
    uninstall,
)
from tests.waiting import eventually

from derops.installation import CONFIG_MAP
from derops_operator.reconciling.agent_authority import TRUST_CERTIFICATE
from derops_operator.resources.config_maps import own_config_map
from derops_operator.resources.objects import FINALIZER, Kind
from derops_operator.trust.config_maps import AGENT_CA, SERVER_CA, wanted_config_map
from derops_operator.uninstall.cluster import NEEDS, Cluster

TENANT = "tenant"
_NO_FINALIZERS = '{"metadata": {"finalizers": null}}'
_API = ("derops.io", "v1alpha1")
OTHERS = "example.com/theirs"
MORE_THAN_A_PAGE = 110
APPLIED = {"type": "Applied", "status": "True"}
TIME = "2026-12-01T12:00:00Z"


class World:
    """A control plane with the account of an uninstallation, and one tenant."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane
        self.kubectl = control_plane.kubectl
        self.kubeconfig = account(control_plane)
        self.kubectl("create", "namespace", TENANT)
        client = kubernetes.config.new_client_from_config(control_plane.kubeconfig)
        self._objects = kubernetes.client.CustomObjectsApi(client)
        """kubectl asks five times a second; this one as often as it likes."""

    def uninstall(self, *options: str) -> tuple[int, str]:
        return uninstall(self.kubeconfig, *options)

    def end(self) -> None:
        """Leave nothing: what bears a finalizer is let go of."""
        for kind in ("dispatches", "derassets"):
            for each in self.all(kind):
                if each["metadata"].get("finalizers"):
                    self.patch(kind, each["metadata"]["name"], metadata={"finalizers": None})
        for kind in ("dispatches", "derassets"):
            self._objects.delete_collection_namespaced_custom_object(*_API, TENANT, kind)
            assert self.all(kind) == []
        self.kubectl("delete", "events", "--all", "-n", TENANT)

    def create(self, manifest: dict[str, Any]) -> None:
        self._objects.create_namespaced_custom_object(*_API, TENANT, "dispatches", manifest)

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.control_plane.apply(*manifests)

    def dispatch(self, name: str, *finalizers: str, **status: Any) -> None:
        """Create a Dispatch as it is some time after an operator has seen it."""
        self.create(_dispatch(name, *finalizers))
        if status:
            self.patch("dispatches", name, status=status)

    def patch(self, kind: str, name: str, **body: Any) -> None:
        part = "_status" if "status" in body else ""
        patch = getattr(self._objects, f"patch_namespaced_custom_object{part}")
        patch(*_API, TENANT, kind, name, body)

    def all(self, kind: str) -> list[dict[str, Any]]:
        answer = self._objects.list_namespaced_custom_object(*_API, TENANT, kind)
        found: list[dict[str, Any]] = answer["items"]
        return found

    def get(self, name: str) -> dict[str, Any]:
        return next(each for each in self.all("dispatches") if each["metadata"]["name"] == name)

    def told(self, name: str) -> list[str]:
        """Return the namespaces that have a ConfigMap of this name."""
        field = f"--field-selector=metadata.name={name}"
        found = json.loads(self.kubectl("get", "configmaps", "-A", field, "-o", "json"))
        return [each["metadata"]["namespace"] for each in found["items"]]

    def finalizers(self) -> list[str]:
        """Return all finalizers that are left."""
        return [
            name
            for kind in ("dispatches", "derassets")
            for each in self.all(kind)
            for name in each["metadata"].get("finalizers", [])
        ]

    def is_cancelled(self, name: str) -> bool:
        return bool(self.get(name)["spec"]["desiredState"] == "Cancelled")


def _dispatch(name: str, *finalizers: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": TENANT, "finalizers": list(finalizers)}
    return merged(DISPATCH, {"metadata": metadata})


def _ended(reverted: str = "True", phase: str = "Cancelled", at: str = TIME) -> dict[str, Any]:
    condition = {
        "type": "Reverted",
        "status": reverted,
        "reason": "Reverted",
        "message": "",
        "lastTransitionTime": TIME,
    }
    return {"phase": phase, "completionTime": at, "conditions": [condition]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[World]:
    """Return a cluster of its own: an uninstallation concerns all that is there."""
    with ControlPlane() as control_plane:
        yield World(control_plane)


@pytest.fixture
def world(cluster: World) -> Iterator[World]:
    yield cluster
    cluster.end()


@pytest.fixture(scope="module")
def installed(cluster: World) -> Iterator[Pods]:
    with Pods(cluster.control_plane) as pods:
        yield pods


@pytest.fixture
def pods(world: World, installed: Pods) -> Pods:
    """Return operator and headend as they are when they run."""
    installed.stop = lambda: None
    installed.install()
    return installed


@pytest.fixture
def nobody(pods: Pods) -> Pods:
    """Return what is left where the operator was stopped before."""
    pods.end_operator()
    return pods


@pytest.fixture
def playing(world: World) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Do something again and again meanwhile, as an operator does."""
    ending = threading.Event()
    threads: list[threading.Thread] = []

    def play(step: Callable[[], object]) -> None:
        def loop() -> None:
            while not ending.wait(0.1):
                step()

        threads.append(threading.Thread(target=loop))
        threads[-1].start()

    yield play
    ending.set()
    for thread in threads:
        thread.join()


def _revert_what_is_cancelled(world: World) -> None:
    for each in world.all("dispatches"):
        phase = each.get("status", {}).get("phase")
        if each["spec"]["desiredState"] == "Cancelled" and phase != "Cancelled":
            name = each["metadata"]["name"]
            world.patch("dispatches", name, status=_ended())


def test_the_rules_of_the_chart_are_what_is_needed() -> None:
    needed = {(need.verb, need.group, need.resource, need.name) for need in NEEDS}
    given = {
        (verb, group, resource, name)
        for file in ("uninstall-rules.yaml", "uninstall-namespace-rules.yaml")
        for rule in rules(file)
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }

    assert given == needed


def test_without_the_rights_it_says_which_are_missing_and_does_nothing(world: World) -> None:
    world.dispatch("running", FINALIZER, phase="Active")
    poor = account(world.control_plane, "poor", in_namespace=False)

    code, output = uninstall(poor, "--force")

    assert code == 1
    assert f"patch deployments/scale.apps {OPERATOR} in its namespace" in output
    assert "watch pods in its namespace" in output
    assert "dispatches" not in output
    assert not world.is_cancelled("running")


def test_it_ends_all_stops_the_operator_and_leaves_nothing_that_hangs(
    world: World, pods: Pods, playing: Callable[[Callable[[], object]], None]
) -> None:
    metadata = {"namespace": TENANT, "finalizers": [FINALIZER, OTHERS]}
    world.apply(merged(BATTERY, {"metadata": metadata}))
    world.dispatch("running", FINALIZER, phase="Active", conditions=[])
    world.dispatch("later", OTHERS, FINALIZER, phase="Acked", conditions=[])
    world.dispatch("new")
    world.dispatch("done", **_ended(phase="Complete"))
    playing(lambda: _revert_what_is_cancelled(world))

    code, output = world.uninstall()

    assert code == 0, output
    assert all(world.is_cancelled(name) for name in ("running", "later", "new"))
    assert not world.is_cancelled("done")
    assert pods.replicas() == 0
    assert world.finalizers() == [OTHERS, OTHERS]
    assert "kubectl delete crd derassets.derops.io dispatches.derops.io" in output
    assert len(world.all("dispatches")) == 4


def test_what_is_not_reverted_in_time_is_named_and_nothing_is_removed(
    world: World, pods: Pods
) -> None:
    world.dispatch(
        "stuck", FINALIZER, phase="Active", message="the device took the setpoint",
        timeline={"plannedEnd": TIME},
    )  # fmt: skip
    world.dispatch("failed", **_ended("False", "Failed"))
    world.dispatch("unknown", **_ended("Unknown", "Failed", "2099-01-01T00:00:00Z"))
    world.dispatch("long-ago", **_ended("Unknown", "Failed", "2024-01-01T00:00:00Z"))

    code, output = world.uninstall("--timeout-seconds", "2")

    assert code == 1, output
    named = output.partition("these are not known to be reverted")[2]
    assert "tenant/stuck: Active; there is no DERAsset battery-7" in named
    assert f"its device may hold ActivePower 5000 W until {TIME}" in named
    assert "tenant/failed: Failed" in named
    assert "tenant/unknown: Failed" in named
    assert "long-ago" not in named
    assert "tenant/long-ago" in output
    assert "derops.io/uninstall=Force" in output
    assert world.is_cancelled("stuck")
    assert pods.replicas() == 1
    assert world.finalizers() == [FINALIZER]


@pytest.mark.parametrize("way", ["option", "annotation"])
def test_forced_it_goes_on_having_named_them(world: World, pods: Pods, way: str) -> None:
    world.dispatch("stuck", FINALIZER, phase="Active")
    options = ["--timeout-seconds", "1"]
    if way == "option":
        options.append("--force")
    else:
        world.kubectl(
            "annotate",
            "deployment",
            OPERATOR,
            "-n",
            NAMESPACE,
            f"{UNINSTALL}=Force",
            "--overwrite",
        )

    code, output = world.uninstall(*options)

    assert code == 0, output
    assert "forced: these are not known to be reverted" in output
    assert "tenant/stuck: Active" in output
    assert pods.replicas() == 0
    assert world.finalizers() == []
    events = json.loads(world.kubectl("get", "events", "-n", TENANT, "-o", "json"))["items"]
    assert [each["reason"] for each in events] == ["RevertUnknown"]
    assert world.get("stuck")["status"]["phase"] == "Active"


def test_what_the_operator_told_goes_but_where_an_agent_may_have_to_start_again(
    world: World, nobody: Pods
) -> None:
    for namespace in ("told", "anothers"):
        world.kubectl("create", "namespace", namespace)
    foreign = wanted_config_map("anothers", SERVER_CA, "pem")
    foreign["metadata"]["labels"] = {}
    world.apply(
        foreign,
        *(wanted_config_map(namespace, SERVER_CA, "pem") for namespace in (TENANT, "told")),
        *(wanted_config_map(NAMESPACE, name, "pem") for name in (SERVER_CA, AGENT_CA)),
        own_config_map(NAMESPACE, CONFIG_MAP, {"status.json": "{}"}),
    )
    world.kubectl("create", "secret", "generic", TRUST_CERTIFICATE, "-n", NAMESPACE)
    world.dispatch("stuck", FINALIZER, phase="Active")

    code, output = world.uninstall("--force")

    assert code == 0, output
    assert f"not in {TENANT}, whose agents may have to start again" in output
    assert "still there" not in output
    assert set(world.told(SERVER_CA)) == {TENANT, "anothers", NAMESPACE}
    assert world.told(AGENT_CA) == [NAMESPACE]
    assert world.told(CONFIG_MAP) == []
    secrets = world.kubectl("get", "secrets", "-n", NAMESPACE, "-o", "name")
    assert TRUST_CERTIFICATE not in secrets

    world.patch("dispatches", "stuck", status=_ended())
    world.kubectl("annotate", "configmap", SERVER_CA, "-n", TENANT, "a=b")
    code, output = world.uninstall()

    assert code == 0, output
    assert set(world.told(SERVER_CA)) == {"anothers", NAMESPACE}
    world.kubectl("delete", "configmap", SERVER_CA, AGENT_CA, "-n", NAMESPACE)


@pytest.mark.parametrize("missing", [OPERATOR, HEADEND])
def test_where_nobody_can_revert_it_refuses_at_once_and_changes_nothing(
    world: World, pods: Pods, missing: str
) -> None:
    world.dispatch("running", FINALIZER, phase="Active")
    kind = "deployment" if missing == OPERATOR else "statefulset"
    world.kubectl("scale", f"{kind}/{missing}", "-n", NAMESPACE, "--replicas=0")

    code, output = world.uninstall()

    assert code == 1
    assert f"refused: {missing} in namespace {NAMESPACE} has 0 replicas: nobody can" in output
    assert "tenant/running: Active" in output
    assert not world.is_cancelled("running")
    assert world.finalizers() == [FINALIZER]


@pytest.mark.parametrize("left", ["no operator", "no pod of it"])
def test_with_nothing_running_any_more_it_lets_go_of_what_is_left(
    world: World, nobody: Pods, left: str
) -> None:
    if left == "no operator":
        world.kubectl("delete", "deployment", OPERATOR, "-n", NAMESPACE)
    world.dispatch("done", FINALIZER, **_ended())
    world.dispatch("never-seen")

    code, output = world.uninstall()

    assert code == 0, output
    assert world.finalizers() == []
    assert world.is_cancelled("never-seen")


def test_what_comes_in_meanwhile_is_ended_too(
    world: World, pods: Pods, playing: Callable[[Callable[[], object]], None]
) -> None:
    world.dispatch("first", FINALIZER, phase="Active")
    running = start_uninstall(world.kubeconfig)
    eventually(lambda: world.is_cancelled("first"), "the first")

    world.dispatch("second", FINALIZER, phase="Active")
    eventually(lambda: world.is_cancelled("second"), "the second")
    playing(lambda: _revert_what_is_cancelled(world))
    output, _ = running.communicate()

    assert running.returncode == 0, output
    assert world.finalizers() == []


def test_what_begins_while_the_operator_is_stopped_starts_it_again(
    world: World, pods: Pods
) -> None:
    pods.stop = lambda: world.dispatch("sudden", FINALIZER, phase="Sent")

    code, output = world.uninstall()

    assert code == 1, output
    assert "these began while the operator was being stopped:\n  tenant/sudden" in output
    assert pods.replicas() == 1
    assert world.finalizers() == [FINALIZER]


def test_an_operator_that_is_scaled_up_again_is_told(world: World, pods: Pods) -> None:
    world.dispatch("done", FINALIZER, **_ended())
    pods.stop = lambda: pods.scale(1)

    code, output = world.uninstall()

    assert code == 1, output
    assert "GitOps" in output
    assert world.finalizers() == [FINALIZER]


def test_what_is_deleted_before_it_is_over_is_told(world: World, pods: Pods) -> None:
    world.dispatch("vanishing", FINALIZER, phase="Active")
    world.dispatch("staying", FINALIZER, phase="Active")
    running = start_uninstall(world.kubeconfig, "--timeout-seconds", "20")
    eventually(lambda: world.is_cancelled("vanishing"), "the cancel")

    world.patch("dispatches", "vanishing", metadata={"finalizers": None})
    world.kubectl("delete", "dispatch", "vanishing", "-n", TENANT)
    output, _ = running.communicate()

    assert running.returncode == 1
    assert "tenant/vanishing: Active; it was deleted meanwhile" in output


def test_many_are_read_in_pages_and_killed_in_the_middle_two_at_once_go_on(
    world: World, nobody: Pods
) -> None:
    for number in range(MORE_THAN_A_PAGE):
        world.create(_dispatch(f"many-{number}", FINALIZER))
    running = start_uninstall(world.kubeconfig, "--force")
    eventually(lambda: len(world.finalizers()) < MORE_THAN_A_PAGE, "the first to be let go of")
    running.kill()
    running.communicate()
    left = len(world.finalizers())

    both = [start_uninstall(world.kubeconfig, "--force") for _ in "ab"]
    outputs = [running.communicate()[0] for running in both]

    assert 0 < left < MORE_THAN_A_PAGE
    assert [running.returncode for running in both] == [0, 0], outputs
    assert world.finalizers() == []
    assert all(each["spec"]["desiredState"] == "Cancelled" for each in world.all("dispatches"))


def test_two_at_once_stop_the_operator_once(
    world: World, pods: Pods, playing: Callable[[Callable[[], object]], None]
) -> None:
    world.dispatch("running", FINALIZER, phase="Active")
    both = [start_uninstall(world.kubeconfig) for _ in "ab"]
    eventually(lambda: world.is_cancelled("running"), "the cancel")

    playing(lambda: _revert_what_is_cancelled(world))
    outputs = [running.communicate()[0] for running in both]

    assert [running.returncode for running in both] == [0, 0], outputs
    assert world.finalizers() == []
    assert pods.replicas() == 0


def test_a_signal_ends_it_with_a_word(world: World, pods: Pods) -> None:
    world.dispatch("stuck", FINALIZER, phase="Active")
    running = start_uninstall(world.kubeconfig)
    eventually(lambda: world.is_cancelled("stuck"), "the cancel")

    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate()

    assert running.returncode == 1
    assert "stopped in the middle: run it again" in output
    assert pods.replicas() == 1


@pytest.fixture
def protected(world: World) -> Iterator[str]:
    """Return the name of a Dispatch that the account may not change, as a policy says."""
    name = "protected"
    policy: dict[str, Any] = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["derops.io"],
                        "apiVersions": ["*"],
                        "operations": ["UPDATE"],
                        "resources": ["dispatches"],
                    }
                ]
            },
            "validations": [
                {
                    "expression": f"object.metadata.name != '{name}' "
                    f"|| request.userInfo.username != '{USER}'",
                    "message": "it is mine",
                }
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }
    world.apply(policy, binding)
    world.dispatch(name, FINALIZER)

    def is_enforced() -> bool:
        try:
            world.kubectl(
                "annotate", "dispatch", name, "-n", TENANT, "a=b", "--dry-run=server",
                f"--as={USER}",
            )  # fmt: skip
        except StackError as refusal:
            return "it is mine" in str(refusal)
        return False

    eventually(is_enforced, "the policy")
    yield name
    world.kubectl("delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", name)


def test_one_that_may_not_be_changed_keeps_no_other(
    world: World, nobody: Pods, protected: str
) -> None:
    world.dispatch("another", FINALIZER)

    code, output = world.uninstall("--force")

    assert code == 1
    assert f"tenant/{protected}: Submitted; it could not be cancelled: " in output, output
    assert f"  dispatches tenant/{protected}: " in output
    assert "it is mine" in output
    assert world.is_cancelled("another")
    assert world.finalizers() == [FINALIZER]
    assert world.get(protected)["metadata"]["finalizers"] == [FINALIZER]


def test_strange_objects_of_tenants_are_let_go_of_like_others(world: World, nobody: Pods) -> None:
    levels = 2000
    strange = _dispatch("n" * 63, FINALIZER, "derops.io/made-up", OTHERS)
    strange["metadata"] |= {
        "annotations": {"note": "\u202e\x1b[2J" + "x" * 200_000},
        "managedFields": [
            {
                "manager": "m",
                "operation": "Update",
                "apiVersion": "derops.io/v1alpha1",
                "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": "deep"},
            }
        ],
    }
    deep = '{"f:a":' * levels + "{}" + "}" * levels
    world.kubectl("create", "-f", "-", stdin=json.dumps(strange).replace('"deep"', deep))
    world.dispatch("plain", FINALIZER)
    everything = ("dispatches", "--all", "-n", TENANT)

    running = start_uninstall(world.kubeconfig, "--force")  # deeper than this process reads
    output, _ = running.communicate()
    left = world.kubectl(
        "get", "dispatches", "-n", TENANT, "-o", "jsonpath={.items[*].metadata.finalizers}"
    )
    world.kubectl("patch", "dispatch", "n" * 63, "-n", TENANT, "--type=merge", "-p", _NO_FINALIZERS)
    world.kubectl("delete", *everything)

    assert running.returncode == 0, output
    assert json.loads(left) == [OTHERS]


async def test_a_finalizer_that_somebody_adds_meanwhile_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.dispatch("contested", FINALIZER)
    monkeypatch.setenv("KUBECONFIG", world.kubeconfig)
    cluster = await Cluster.connect()
    try:
        as_read = await cluster.read(Kind.DISPATCH, TENANT, "contested")
        world.patch("dispatches", "contested", metadata={"finalizers": [OTHERS, FINALIZER]})

        await cluster.release(Kind.DISPATCH, as_read)
    finally:
        await cluster.close()

    assert world.finalizers() == [OTHERS]


def test_the_commands_of_the_page_are_taken_where_pods_are_restricted(
    world: World, pods: Pods
) -> None:
    step, *_ = documented_commands("Without Helm")
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    world.kubectl("label", "namespace", NAMESPACE, restricted, "--overwrite")
    try:
        printed = type_commands(
            str(world.control_plane.binaries.kubectl),
            world.control_plane.kubeconfig,
            step.replace("--attach --rm", "--dry-run=server -o json"),
        )
    finally:
        world.kubectl("label", "namespace", NAMESPACE, restricted.partition("=")[0] + "-")
    pod = json.loads(printed)
    (container,) = pod["spec"]["containers"]

    assert pod["spec"]["serviceAccountName"] == "derops-uninstall"
    assert container["args"] == ["uninstall"]
    assert container["image"] == "none"
    assert container["env"] == [{"name": "DEROPS_OPERATOR_NAMESPACE", "value": NAMESPACE}]


def test_it_waits_until_the_last_pod_is_gone(world: World, pods: Pods) -> None:
    world.dispatch("done", FINALIZER, **_ended())
    left: list[list[str]] = []
    pods.stop = lambda: left.append(world.finalizers())

    code, output = world.uninstall()

    assert code == 0, output
    assert left == [[FINALIZER]]
    assert world.finalizers() == []
