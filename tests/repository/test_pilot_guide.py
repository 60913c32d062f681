"""The pilot guide can be typed: what stands in it is taken by who will be given it."""

import functools
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from tests import guide
from tests.chart import rendering
from tests.repository.test_docs import crd_fields
from tests.stack import build, chart, places
from tests.stack.controlplane import ControlPlane

from derops_agent.settings import AgentSettings

BLOCKS = guide.blocks()
BY_LINE = [pytest.param(each, id=f"line {each.line}") for each in BLOCKS]
MANIFESTS = [
    pytest.param(text, id=f"line {each.line}") for each in BLOCKS for text in guide.manifests(each)
]
VALUES = next(filter(None, (guide.file_of(each, "derops-values.yaml") for each in BLOCKS)))
CONFIGURATIONS = [
    *filter(None, (guide.file_of(each, '"$SITE_CONFIGURATION/agent.yaml"') for each in BLOCKS)),
    *(
        document["data"]["agent.yaml"]
        for each in BLOCKS
        for text in guide.manifests(each)
        for document in yaml.safe_load_all(text)
        if document["kind"] == "ConfigMap"
    ),
]


@pytest.mark.parametrize("block", BY_LINE)
def test_a_block_is_shell(block: guide.Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)

    assert done.stderr == ""


def test_every_name_that_is_used_stands_at_the_top_and_every_one_there_is_used() -> None:
    used = {name for block in BLOCKS for name in re.findall(r"\$\{?([A-Z]\w*)", block.text)}

    assert used == set(guide.names())


@pytest.fixture(scope="module")
def tenant(kube: ControlPlane) -> Iterator[ControlPlane]:
    """Return a control plane with the tenant's namespace."""
    namespace = guide.names()["TENANT"]
    kube.kubectl("create", "namespace", namespace)
    # No Pod is taken before: the controller manager makes it a moment later.
    kube.kubectl("wait", "--for=create", "serviceaccount/default", "-n", namespace, "--timeout=60s")
    yield kube
    kube.kubectl("delete", "namespace", namespace)


@pytest.mark.parametrize("text", MANIFESTS)
def test_manifests_are_taken(tenant: ControlPlane, text: str) -> None:
    taken = tenant.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )

    assert len(taken.splitlines()) == len(list(yaml.safe_load_all(text)))


def test_the_values_are_values_of_the_chart() -> None:
    values = yaml.safe_load(VALUES)
    names = guide.names()
    manifests = chart.documents(values)
    images = {
        container["image"]
        for pod in rendering.pod_specs(manifests).values()
        for container in pod["containers"]
    }
    service = next(
        each["spec"] for each in manifests
        if (each["kind"], each["metadata"]["name"]) == ("Service", "derops-gateway")
    )  # fmt: skip

    ours = f"{names['REGISTRY']}/derops"
    assert {f"{ours}/operator:{names['VERSION']}", names["POSTGRES_IMAGE"]} <= images
    assert service["type"] == names["GATEWAY_SERVICE"]
    assert service["ports"][0]["nodePort"] == int(names["GATEWAY_NODE_PORT"])


def test_the_files_of_agents_are_read_by_the_agent() -> None:
    read = [AgentSettings.model_validate(yaml.safe_load(each)) for each in CONFIGURATIONS]

    assert [each.assets[0].name for each in read] == ["battery-2", "battery-1"]


def test_what_it_names_of_ours_there_is() -> None:
    sources = [
        *(places.REPOSITORY / "charts" / "derops" / "templates").rglob("*"),
        *(places.REPOSITORY / "charts" / "derops" / "files").glob("*"),
        *(places.REPOSITORY / "operator").rglob("*.py"),
        *(places.REPOSITORY / "agent").rglob("main.py"),
        *(places.REPOSITORY / "headend").rglob("main.py"),
    ]
    known = " ".join(each.read_text(encoding="utf-8") for each in sources if each.is_file())
    named = {
        name
        for block in BLOCKS
        for name in re.findall(r"(?<![\w./-])derops-[a-z-]+\b(?!\.\w)", block.text)
    }
    # Replica 0 of a StatefulSet, files of the reader, containers at the site, a release.
    theirs = {"derops-values", "derops-agent", "derops-authorities"}

    assert [name for name in sorted(named - theirs) if name.removesuffix("-") not in known] == []


@pytest.mark.parametrize("block", BY_LINE)
def test_kubectl_has_the_options(block: guide.Block) -> None:
    for words in commands(block, "kubectl"):
        verb = verb_of(words)
        unknown = options(words) - known_options(verb)

        assert not unknown, f"kubectl {' '.join(verb)} has no {unknown}"


def commands(block: guide.Block, program: str) -> Iterator[list[str]]:
    """Yield the words of each command of a program in a block."""
    text = re.sub(r"<<YAML\n.*?^YAML$", "", block.text, flags=re.M | re.S).replace("\\\n", " ")
    for line in re.split(r"\n|&&|\|\||(?<!\\)[;|](?=\s)", text):
        for word in re.findall(rf"(?:^|[\s{{!(]){program} [^#]+", line):
            words = shlex.split(word.strip(" {}!()").split(" > ")[0].split(" < ")[0])
            yield words[1:]


def verb_of(words: list[str]) -> tuple[str, ...]:
    if words[:2] == ["create", "secret"]:
        return tuple(words[:3])
    two = words[0] in ("auth", "create", "rollout") and not words[1].startswith("-")
    return tuple(words[: 2 if two else 1])


def options(words: list[str]) -> set[str]:
    """Return the options of kubectl itself; what follows -- is another program's."""
    own = words[: words.index("--")] if "--" in words else words
    return {word.split("=")[0] for word in own if word.startswith("--")}


@functools.cache
def known_options(verb: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for arguments in (["options"], [*verb, "--help"]):
        said = subprocess.run(
            [build.binaries().kubectl, *arguments], capture_output=True, text=True, check=True
        ).stdout
        found |= set(re.findall(r"(?:^\s+|, )(--[\w-]+)=", said, re.MULTILINE))
    return found


def test_fields_of_status_are_fields_that_our_kinds_have() -> None:
    known = {
        path.replace("[]", "") for kind in ("derasset", "dispatch") for path in crd_fields(kind)
    }
    said = {
        path
        for block in BLOCKS
        for line in block.text.splitlines()
        if re.search(r"derasset|dispatch", line)
        for path in re.findall(r"\.(status\.[\w.]+)", line)
    }

    assert len(said) > 3
    assert said <= known


def test_the_conditions_that_are_waited_for_are_conditions_that_there_are() -> None:
    pages = [
        places.REPOSITORY / "docs" / each
        for each in ("concepts/phases.md", "reference/derasset.md")
    ]
    known = " ".join(page.read_text(encoding="utf-8") for page in pages)
    waited = {
        word
        for block in BLOCKS
        for word in re.findall(r"(?:derasset|dispatch)/\S+ .*--for=condition=(\w+)", block.text)
    }

    assert waited == {"Enrolled", "Connected", "Applied", "Succeeded"}
    assert all(f"`{word}`" in known for word in waited)
