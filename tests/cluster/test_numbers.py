"""What the parts take when nothing happens. Printed beside what was promised; see figures.py."""

from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.cluster.figures import say
from tests.cluster.pods import pod_of
from tests.cluster.site import Site, agent_pod

HEADEND_LIMIT_MIB = 330
AGENT_LIMIT_MIB = 70
API_LIMIT_MIB = 150


def test_resident_memory_when_idle(cluster: Cluster, site: Site) -> None:
    site.battery()
    headend = pod_of(cluster, "headend", installing.NAMESPACE).name
    operator = pod_of(cluster, "operator", installing.NAMESPACE).name

    parts = {
        "operator": _resident(cluster, operator, installing.NAMESPACE, "operator"),
        "gateway": _resident(cluster, headend, installing.NAMESPACE, "gateway"),
        "writer": _resident(cluster, headend, installing.NAMESPACE, "writer"),
    }
    caller = pod_of(cluster, "api", installing.NAMESPACE).name
    api = _resident(cluster, caller, installing.NAMESPACE, "api")
    agent = _resident(cluster, agent_pod("battery"), site.namespace, "agent")

    for name, mebibytes in parts.items():
        say(f"resident_{name}", mebibytes, "MiB", HEADEND_LIMIT_MIB)
    say("resident_operator_gateway_writer", sum(parts.values()), "MiB", HEADEND_LIMIT_MIB)
    say("resident_api", api, "MiB", API_LIMIT_MIB)
    say("resident_agent", agent, "MiB", AGENT_LIMIT_MIB)
    assert all(mebibytes > 10 for mebibytes in (*parts.values(), api, agent)), "not our programs"


def _resident(cluster: Cluster, pod: str, namespace: str, container: str) -> float:
    """Return the resident memory of a container's program in MiB."""
    text = cluster.run_in(pod, namespace, "cat", "/proc/1/status", container=container)
    told = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(told["VmRSS"].split()[0]) / 1024
