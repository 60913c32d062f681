"""Every pod of ours is one that Pod Security ``restricted`` takes, and the cluster enforces it."""

import json

from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.cluster.site import RESTRICTED, Site

_PRIVILEGED = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "privileged"},
    "spec": {
        "containers": [
            {"name": "all", "image": "derops/agent", "securityContext": {"privileged": True}}
        ]
    },
}


def test_all_pods_run_under_restricted(cluster: Cluster, site: Site) -> None:
    site.battery()

    ours = cluster.items("pods", "-A", "-l", "app.kubernetes.io/name=derops")
    namespaces = {pod["metadata"]["namespace"] for pod in ours}
    labels = {
        each["metadata"]["name"]: each["metadata"]["labels"] for each in cluster.items("namespaces")
    }

    assert namespaces >= {installing.NAMESPACE, site.namespace}
    for namespace in namespaces:
        assert RESTRICTED.items() <= labels[namespace].items()
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in ours}
    assert components >= {"operator", "headend", "database", "api", "agent"}
    for pod in ours:
        assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "derops"
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"], container["name"]
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_privileged_pod_is_refused_where_ours_run(cluster: Cluster, site: Site) -> None:
    for namespace in (installing.NAMESPACE, site.namespace):
        refused = cluster.refusal(
            "create", "-n", namespace, "-f", "-", "--dry-run=server", stdin=json.dumps(_PRIVILEGED)
        )
        assert 'violates PodSecurity "restricted' in refused
