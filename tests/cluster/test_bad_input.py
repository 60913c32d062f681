"""What is wrong with an installation is said where a person looks: by helm, or by describe."""

from typing import Any

import pytest
from tests.cluster import installing
from tests.cluster.cluster import Cluster, HelmError
from tests.cluster.installing import NAMESPACE
from tests.cluster.pods import wait_for_pod
from tests.cluster.site import TEST_LABEL, namespace_manifest
from tests.waiting import eventually

POSTGRES_IMAGE = "derops-test/postgres:17"
_EXTERNAL = "outside-database"
_OWN_DATABASE = [
    "--set",
    "postgresql.enabled=false",
    "--set",
    "database.secretName=derops-database",
    "--set",
    "api.enabled=false",
]
_WAIT = ["--timeout", "45s"]
_NOWHERE = f"sha256:{'0' * 64}"


def test_a_database_secret_that_is_missing(empty: Cluster) -> None:
    failed = _fails(empty, *_OWN_DATABASE)

    assert "headend" in failed
    describe(empty, "headend", 'secret "derops-database" not found')


@pytest.mark.parametrize(
    ("component", "value", "image"),
    [
        ("operator", "image.tag=nowhere", "derops/operator:nowhere"),
        # Alone, as a headend first waits for what the operator tells.
        ("headend", f"image.digests.headend={_NOWHERE}", f"@{_NOWHERE}"),
    ],
    ids=["operator", "headend"],
)
def test_an_image_that_is_not_there(empty: Cluster, component: str, value: str, image: str) -> None:
    failed = _fails(empty, "--set", value)

    assert "derops" in failed
    describe(empty, component, "ErrImageNeverPull", image)


def test_a_database_without_rights_and_what_roles_prints(empty: Cluster) -> None:
    """With the statements that ``database roles`` prints the same pod becomes ready."""
    start_database(empty)
    url = f"postgresql://derops_writer@postgres.{_EXTERNAL}:5432/derops"
    empty.apply(
        namespace_manifest(NAMESPACE),
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "derops-database", "namespace": NAMESPACE},
            "stringData": {"url": url},
        },
    )

    _fails(empty, *_OWN_DATABASE)

    describe(empty, "headend", "permission denied for schema public", "database roles --check")
    sql = empty.run_in(
        "derops-headend-0", NAMESPACE, "derops-headend", "database", "roles", container="gateway"
    )
    empty.kubectl(
        "exec", "-i", "postgres-0", "-n", _EXTERNAL, "--",
        "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "derops", stdin=sql,
    )  # fmt: skip
    wait_for_pod(empty, NAMESPACE, "derops-headend-0", 180)


def test_a_cluster_without_cert_manager_is_refused_by_the_chart(bare: Cluster) -> None:
    """Helm is told of a cluster that serves all but cert-manager's kinds."""
    refused = _template_refusal(bare, "--api-versions", "v1/Pod")
    with_it = bare.helm(*_template("--api-versions", "v1/Pod,cert-manager.io/v1/Certificate"))

    assert "cert-manager" in refused
    assert "install" in refused
    assert "kind: Deployment" in with_it


def test_an_old_kubernetes_is_refused_by_the_chart(bare: Cluster) -> None:
    assert "kubeVersion" in _template_refusal(bare, "--kube-version", "1.30.0")


def describe(cluster: Cluster, component: str, *words: str) -> str:
    """Return what ``kubectl describe`` says of a component's pods, once it warns of all that."""
    selector = f"app.kubernetes.io/name=derops,app.kubernetes.io/component={component}"
    said = ""

    def look() -> bool:
        nonlocal said
        said = cluster.kubectl("describe", "pods", "-n", NAMESPACE, "-l", selector)
        return "Warning" in said and all(word in said for word in words)

    try:
        eventually(look, f"a Warning of {component} with {words}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {said.partition('Events:')[2]}") from None
    return said


def start_database(cluster: Cluster) -> None:
    """Run a PostgreSQL that is not the chart's, with a role that may do nothing but log in."""
    cluster.apply(
        namespace_manifest(_EXTERNAL, **{TEST_LABEL: "true"}),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "roles", "namespace": _EXTERNAL},
            "data": {"roles.sql": "create role derops_writer login;"},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "postgres", "namespace": _EXTERNAL},
            "spec": {"selector": {"app": "postgres"}, "ports": [{"port": 5432}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": "postgres", "namespace": _EXTERNAL},
            "spec": {
                "serviceName": "postgres",
                "selector": {"matchLabels": {"app": "postgres"}},
                "template": {"metadata": {"labels": {"app": "postgres"}}, "spec": _postgres()},
            },
        },
    )
    wait_for_pod(cluster, _EXTERNAL, "postgres-0")


def _postgres() -> dict[str, Any]:
    folders = {
        "data": "/var/lib/postgresql/data",
        "run": "/var/run/postgresql",
        "tmp": "/tmp",
    }
    return {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 999,
            "runAsGroup": 999,
            "fsGroup": 999,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "postgresql",
                "image": POSTGRES_IMAGE,
                "imagePullPolicy": "Never",
                "args": ["postgres"],
                "env": [
                    {"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"},
                    {"name": "POSTGRES_USER", "value": "postgres"},
                    {"name": "POSTGRES_DB", "value": "derops"},
                    {"name": "POSTGRES_HOST_AUTH_METHOD", "value": "trust"},
                ],
                "readinessProbe": {
                    "exec": {"command": ["pg_isready", "-h", "127.0.0.1", "-d", "derops"]},
                    "periodSeconds": 1,
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    *({"name": name, "mountPath": path} for name, path in folders.items()),
                    {"name": "roles", "mountPath": "/docker-entrypoint-initdb.d"},
                ],
            }
        ],
        "volumes": [
            *({"name": name, "emptyDir": {}} for name in folders),
            {"name": "roles", "configMap": {"name": "roles"}},
        ],
    }


def _fails(cluster: Cluster, *arguments: str) -> str:
    """Install with ``--wait``, which must fail by its time-out, and return what helm said."""
    with pytest.raises(HelmError) as failed:
        installing.install_by_chart(cluster, *arguments, *_WAIT)
    return str(failed.value)


def _template(*arguments: str) -> list[str]:
    return [
        "template", installing.RELEASE, str(installing.CHART), "-n", NAMESPACE,
        "-f", str(installing.VALUES), *arguments,
    ]  # fmt: skip


def _template_refusal(cluster: Cluster, *arguments: str) -> str:
    with pytest.raises(HelmError) as refused:
        cluster.helm(*_template(*arguments))
    return str(refused.value)
