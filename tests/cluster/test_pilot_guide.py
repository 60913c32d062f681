"""The pilot guide, typed from its first command to its last in a cluster without derops.

Nothing of the page is changed but the values of the names at its top. The devices are a program in
Rust that shares no code with derops (tests/sunspecserver); the machine of the tests plays the site.
"""

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import guide
from tests.stack import places, sunspec

UNITS = (1, 2)
NODE_PORT = 30843
SITE_AGENT = "derops-agent"
"""The container that the page starts at the site."""

PAGE_SECONDS = 1500
RECORD = places.BUILD / "pilot-guide.log"
"""What was typed and printed, with times: for a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """One block that was typed: what it printed and how long it took."""

    block: guide.Block
    printed: str
    seconds: float


@pytest.fixture
def environment(empty: object, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a shell in which kubectl, helm and docker mean this cluster."""
    said = json.loads((places.BUILD / "cluster.json").read_text(encoding="utf-8"))
    if said["kind"] is None:
        pytest.skip("the page's devices run on this machine, which only a kind cluster reaches")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("kubectl", "helm"):
        (programs / name).symlink_to(said[name])
    shell = os.environ | {
        "KUBECONFIG": said["kubeconfig"],
        "PATH": f"{programs}:{os.environ['PATH']}",
        **({"DOCKER_HOST": said["dockerHost"]} if said["dockerHost"] else {}),
    }
    sweep(shell)
    yield shell
    sweep(shell)


def sweep(environment: dict[str, str]) -> None:
    """Take away what a page that was typed half leaves beside derops."""
    tenant = guide.names()["TENANT"]
    delete = ["kubectl", "delete", "namespace", "--ignore-not-found"]
    for command in (
        ["docker", "rm", "--force", SITE_AGENT],
        [*delete, tenant, "derops-callers", "--timeout=120s"],
    ):
        # One that is not there is none of its troubles.
        subprocess.run(command, env=environment, capture_output=True, check=False)


@pytest.fixture
def values(environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return what stands for the names at the top of the page, with the devices running."""

    def say(*command: str) -> str:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    address = "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}"
    node = say("kubectl", "get", "nodes", "-o", address)
    routes = json.loads(say("ip", "-json", "-4", "route", "get", node))
    machine, port = str(routes[0]["prefsrc"]), str(places.free_port())
    delivery = tmp_path / "delivery"
    delivery.mkdir()
    (delivery / "charts").symlink_to(places.REPOSITORY / "charts")
    have_image_at_the_site(environment)
    with sunspec.batteries(f"0.0.0.0:{port}", *UNITS):
        yield {
            "DELIVERY": str(delivery),
            "REGISTRY": "docker.io",  # where a node looks for images without a registry in name
            "POSTGRES_IMAGE": "docker.io/derops-test/postgres:17",
            "GATEWAY_SERVICE": "NodePort",
            "GATEWAY_NODE_PORT": str(NODE_PORT),
            "GATEWAY_ADDRESS": f"{node}:{NODE_PORT}",
            "DEVICE_HOST": machine,
            "DEVICE_PORT": port,
            "DEVICE_UNIT": str(UNITS[0]),
            "SITE_DEVICE_HOST": "127.0.0.1",
            "SITE_DEVICE_PORT": port,
            "SITE_DEVICE_UNIT": str(UNITS[1]),
            "SITE_CONFIGURATION": str(tmp_path / "etc"),
            "SITE_DATA": str(tmp_path / "var"),
        }


def have_image_at_the_site(environment: dict[str, str]) -> None:
    """Have the agent's image in Docker, as a registry would give it."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    archive = places.BUILD / "images" / f"agent-{architecture}.tar"
    load = ["docker", "load", "--quiet", "--input", str(archive)]
    said = subprocess.run(load, env=environment, capture_output=True, text=True, check=True).stdout
    image = f"derops/agent:{guide.names()['VERSION']}"
    tag = ["docker", "tag", said.rpartition(": ")[2].strip(), image]
    subprocess.run(tag, env=environment, check=True)


@pytest.mark.timeout(PAGE_SECONDS + 120)
def test_the_page_leads_from_an_empty_cluster_to_telemetry_and_back(
    environment: dict[str, str], values: dict[str, str], tmp_path: Path
) -> None:
    blocks = [each for each in guide.blocks() if each.is_run]
    typed = type_all(blocks, values, environment, tmp_path)
    said = {line: each for each in typed for line in each.block.text.splitlines()}
    described = said['kubectl describe dispatch first --namespace "$TENANT"'].printed

    assert [each.block for each in typed] == blocks
    for each in typed:
        if each.block.answer is not None:
            assert each.block.answer.strip() in each.printed
    assert re.search(r"^  Phase: +Complete$", described, re.MULTILINE)
    assert re.search(r"^    Evidence: +Effect$", described, re.MULTILINE)
    assert sum(each.seconds for each in typed) < PAGE_SECONDS


def type_all(
    blocks: list[guide.Block], values: dict[str, str], environment: dict[str, str], folder: Path
) -> list[Typed]:
    """Type blocks into one shell and return what came of each; the first that fails ends it."""
    marks = [f"@@@ {number}" for number in range(len(blocks) + 1)]
    first, *others = blocks
    texts = [guide.with_names(first.text, values), *(each.text for each in others)]
    script = ["set -euo pipefail", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"]
    for mark, block, text in zip(marks, blocks, texts, strict=False):
        script.append(f'echo "{mark} $EPOCHREALTIME"')
        script.append(f"(\n{text}\n)" if block.is_at_the_site else text)
    script.append(f'echo "{marks[-1]} $EPOCHREALTIME"')
    RECORD.parent.mkdir(exist_ok=True)
    with RECORD.open("w", encoding="utf-8") as record:
        done = subprocess.run(
            [shutil.which("bash") or "bash", "-c", "\n".join(script)],
            env=environment, cwd=folder, stdout=record, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, timeout=PAGE_SECONDS, check=False,
        )  # fmt: skip
    parts = RECORD.read_text(encoding="utf-8").split("@@@ ")[1:]
    times = [float(part.split()[1]) for part in parts]
    typed = [
        Typed(block=block, printed=part.partition("\n")[2], seconds=end - begin)
        for block, part, begin, end in zip(blocks, parts, times, times[1:], strict=False)
    ]
    for each in typed:
        print(f"line {each.block.line}: {each.seconds:.1f} s", flush=True)
    if done.returncode:
        failed = blocks[len(parts) - 1]
        pytest.fail(f"line {failed.line} of the page:\n{failed.text}\n{parts[-1]}", pytrace=False)
    return typed
