"""The commands of docs/runbooks/upgrade.md and roll-back.md, with a dispatch running over them.

Both releases have the images of this tree: what differs is the chart's revision, and all pods are
new after each step. That two releases get along is what ``make rollback`` shows.
"""

import json
import re
import shlex

import pytest
from tests.cluster import installing
from tests.cluster.proving import assert_true
from tests.cluster.site import Site
from tests.stack import places

_RUNBOOKS = places.REPOSITORY / "docs" / "runbooks"


def command(page: str, begins: str) -> str:
    """Return a command of a runbook, with its continued lines."""
    text = (_RUNBOOKS / page).read_text(encoding="utf-8").replace("\\\n", "")
    (found,) = {line.strip() for line in text.splitlines() if line.strip().startswith(begins)}
    return found.partition("#")[0]


def block(page: str, begins: str) -> str:
    """Return the first block of a runbook that begins so."""
    text = (_RUNBOOKS / page).read_text(encoding="utf-8")
    _, fence, rest = text.partition(f"```sh\n{begins}")
    assert fence, begins
    return begins + rest.partition("```")[0]


@pytest.mark.timeout(1200)
def test_an_upgrade_is_rolled_back_in_mid_dispatch(site: Site) -> None:
    cluster = site.cluster
    history = json.loads(
        cluster.helm("history", installing.RELEASE, "-n", installing.NAMESPACE, "-o", "json")
    )
    before = next(each["revision"] for each in reversed(history) if each["status"] == "deployed")
    site.battery()
    setpoint = {"mode": "ActivePower", "activePowerWatts": 4200}
    site.dispatch("across", setpoint=setpoint, durationSeconds=1200)
    site.wait_for_phase("across", "Active")

    anew = {"podAnnotations": {"derops.io/test": "upgraded"}}
    values = ",".join(f"{part}={json.dumps(anew)}" for part in ("gateway", "api", "operator"))
    installing.install_by_chart(cluster, "--set-json", values)
    installing.wait_until_ready(cluster)
    site.wait_for_condition("derasset", "battery", "Connected", "True")
    rollback = command("roll-back.md", "helm rollback").replace("REVISION", str(before))
    cluster.helm(*shlex.split(rollback)[1:])
    for workload in ("deployment/derops-operator", "statefulset/derops-headend"):
        cluster.shell(
            command("roll-back.md", f"kubectl rollout status -n derops-system {workload}")
        )

    site.wait_for_condition("derasset", "battery", "Connected", "True")
    versions = cluster.shell(block("roll-back.md", "kubectl exec"))
    assert re.fullmatch(r"version \d+, readable from \d+\n", versions)
    site.cancel("across")
    status = site.wait_for_phase("across", "Cancelled")
    assert status["execution"]["interruptions"] == 0
    assert_true(site, "across")
    cluster.helm(*shlex.split(command("roll-back.md", "helm test"))[1:])
