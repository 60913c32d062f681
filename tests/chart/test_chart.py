"""The chart fits the programs that it runs, and what is made of it is current."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings
from tests.chart.rendering import VARIANTS, pod_specs, values_of
from tests.stack import build, places
from tests.stack.chart import CHART, documents, rendered

from derops_headend.api.settings import ApiSettings
from derops_headend.gateway.settings import GatewaySettings
from derops_headend.programs.writer import WriterSettings
from derops_headend.storage.roles import roles_sql
from derops_operator.settings import OperatorSettings

PROGRAMS: dict[str, type[BaseSettings]] = {
    "operator": OperatorSettings,
    "gateway": GatewaySettings,
    "writer": WriterSettings,
    "api": ApiSettings,
}
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.stem)


@pytest.fixture(scope="module")
def chart() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(places.REPOSITORY / "scripts"))
        yield importlib.import_module("chart")


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def test_the_chart_has_the_crds(chart: ModuleType) -> None:
    assert {file.name: file.read_bytes() for file in chart.CRDS.iterdir()} == chart.crds()


def test_the_chart_has_the_sql_that_database_roles_prints(chart: ModuleType) -> None:
    assert chart.ROLES.read_bytes() == roles_sql()


def test_the_readme_has_every_value_and_its_comment(chart: ModuleType) -> None:
    assert chart.README.read_text(encoding="utf-8") == chart.readme()


@every_variant
def test_settings_that_the_chart_gives_exist(variant: Path) -> None:
    seen = set() if values_of(variant).get("api", {}).get("enabled", True) else {"api"}
    for spec in pod_specs(documents(values_of(variant))).values():
        for container in containers(spec):
            kind = PROGRAMS.get(container["name"])
            if kind is None:
                continue
            prefix = str(kind.model_config["env_prefix"])
            known = {f"{prefix}{field.upper()}" for field in kind.model_fields}
            given = {each["name"] for each in container["env"] if each["name"].startswith("DEROPS")}
            assert given <= known
            required = {
                f"{prefix}{name.upper()}"
                for name, field in kind.model_fields.items()
                if field.is_required()
            }
            assert required <= given
            seen.add(container["name"])

    assert seen == set(PROGRAMS)


@every_variant
def test_names_that_the_chart_gives_are_refused_from_others(variant: Path) -> None:
    refused = (CHART / "templates" / "validate.yaml").read_text(encoding="utf-8")
    for name, spec in pod_specs(documents(values_of(variant))).items():
        for container in containers(spec):
            if (kind := PROGRAMS.get(container["name"])) is not None:
                prefix = str(kind.model_config["env_prefix"])
                names = {each["name"].removeprefix(prefix) for each in container["env"]}
                assert {each for each in names if each not in refused} <= {
                    "GRPC_VERBOSITY",
                    "AUDIENCE",
                }
        if name.endswith(("/derops-operator", "/derops-headend", "/derops-api", "/derops-test")):
            names = {each["name"] for each in spec["volumes"]} - {"database-ca"}
            assert {each for each in names if f'"{each}"' not in refused} == set()


@every_variant
def test_every_container_says_at_its_end_why(variant: Path) -> None:
    for name, spec in pod_specs(documents(values_of(variant))).items():
        for container in containers(spec):
            if container["name"] != "reload":
                assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", name


@every_variant
def test_ports_of_probes_are_those_of_the_programs(variant: Path) -> None:
    ports = {"operator": 8080, "gateway": 8081, "writer": 8082, "api": 8083, "agent": 8083}
    for spec in pod_specs(documents(values_of(variant))).values():
        for container in spec["containers"]:
            if (port := ports.get(container["name"])) is None:
                continue
            probed = container["readinessProbe"]["exec"]["command"]
            assert probed == ["/opt/derops/bin/ready", str(port)]
            assert port in {each["containerPort"] for each in container["ports"]}


@every_variant
def test_no_pod_is_given_the_key_of_an_authority(variant: Path) -> None:
    authorities = {"derops-server-ca", "derops-control-ca", "derops-agent-ca", "derops-database-ca"}
    for name, spec in pod_specs(documents(values_of(variant))).items():
        for volume in spec["volumes"]:
            secret = volume.get("secret", {})
            if secret.get("secretName") in authorities:
                assert secret["items"] == [{"key": "ca.crt", "path": "ca.crt"}], name


@every_variant
def test_every_object_tells_whose_it_is(variant: Path) -> None:
    theirs = {"CustomResourceDefinition"}
    for each in documents(values_of(variant)):
        name = each["metadata"]["name"]
        if each["kind"] not in theirs and not name.startswith("extra"):
            assert each["metadata"]["labels"]["app.kubernetes.io/name"] == "derops", name


def test_manifests_without_helm_hold_no_secret_and_no_hook(chart: ModuleType) -> None:
    values = values_of(chart.PILOT)

    text = chart.install_yaml(values, rendered(values))

    objects = list(yaml.safe_load_all(text))
    kinds = [each["kind"] for each in objects]
    assert kinds[:3] == ["Namespace", "CustomResourceDefinition", "CustomResourceDefinition"]
    assert "Secret" not in kinds
    assert "helm.sh/hook" not in text
    assert "managed-by: Helm" not in text
    hooks = [
        each
        for each in documents(values)
        if "helm.sh/hook" in each["metadata"].get("annotations", {})
    ]
    assert hooks
    assert len(objects) == len(documents(values)) - len(hooks) + 1


def test_a_chart_tells_one_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (places.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert about["version"] == about["appVersion"]
    assert f'version = "{about["version"]}"' in project


def test_one_oldest_version_of_kubernetes_is_told_and_it_is_the_one_that_was_run() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    minor = build.KUBERNETES_VERSION.removeprefix("v").rpartition(".")[0]
    assert about["kubeVersion"] == f">={minor}.0-0"
    assert f"| Kubernetes | {minor}: " in (CHART / "README.md").read_text(encoding="utf-8")
    readme = (places.REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"It needs Kubernetes {minor}, " in readme
