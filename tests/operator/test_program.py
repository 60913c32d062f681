"""The program's edges: settings, rights, and what of kopf is used."""

import asyncio
import re
from pathlib import Path
from typing import Any

import kopf
import pytest
import yaml
from pydantic import ValidationError
from tests.pki import write_identity

import derops_operator
from derops_operator.cluster.watching import configure, make_registry
from derops_operator.settings import OperatorSettings

ROOT = Path(__file__).parents[2]
SOURCES = Path(derops_operator.__file__).parent

METADATA = {"namespace": "pilot", "name": "battery", "uid": "u", "resourceVersion": "5"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, Any]:
    write_identity(tmp_path)
    return {
        "gateways": "one:8444, two.svc:8444",
        "control_tls_directory": tmp_path,
        "server_ca_file": tmp_path / "server-ca.crt",
        "trust_domain": "derops.test",
    }


def test_gateways_are_a_comma_list(environment: dict[str, Any]) -> None:
    assert OperatorSettings(**environment).gateways == ("one:8444", "two.svc:8444")


@pytest.mark.parametrize(
    "wrong",
    [
        {"gateways": ""},
        {"gateways": "no-port"},
        {"trust_domain": "Not A Domain"},
        {"control_tls_directory": Path("/nowhere")},
        {"resync_seconds": 0},
        {"log_level": "LOUD"},
    ],
)
def test_a_wrong_setting_is_refused(environment: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OperatorSettings(**environment | wrong)


def test_only_the_handlers_of_kopf_that_write_nothing_are_used() -> None:
    text = "\n".join(file.read_text() for file in SOURCES.rglob("*.py"))

    banned = r"kopf\.(timer|daemon|index|on\.(create|update|delete|field|resume|mutate|validate))"
    assert re.findall(banned, text) == []


async def test_kopf_is_an_informer_and_nothing_else() -> None:
    settings = kopf.OperatorSettings()
    configure(settings)

    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert settings.queueing.worker_limit is None
    assert set(settings.watching.label_selectors.values()) == {
        "app.kubernetes.io/managed-by=derops"
    }


async def test_kopf_keeps_no_copy_of_an_object() -> None:
    settings = kopf.OperatorSettings()
    configure(settings)

    body = kopf.Body({"metadata": {"name": "battery"}, "spec": {"type": "Battery"}})
    assert settings.persistence.diffbase_storage.build(body=body) == {}
    assert settings.persistence.diffbase_storage.fetch(body=body) is None
    assert settings.queueing.idle_timeout < 0.1


async def test_nothing_is_watched_before_the_resources_were_listed() -> None:
    listed = asyncio.Event()
    registry = make_registry(lambda *_: None, lambda *_: None, listed.wait, asyncio.sleep)  # type: ignore[arg-type]
    handlers: Any = registry._activities.get_all_handlers()
    (start,) = (each.fn for each in handlers if each.id.endswith("start_up"))
    starting = asyncio.ensure_future(start(settings=kopf.OperatorSettings()))

    await asyncio.sleep(0)
    assert not starting.done()

    listed.set()
    await starting


def test_three_kinds_are_watched() -> None:
    registry = make_registry(lambda *_: None, lambda *_: None, asyncio.sleep, asyncio.sleep)  # type: ignore[arg-type]

    selectors = {
        (handler.selector.group, handler.selector.version, handler.selector.any_name)
        for handler in registry._watching.get_all_handlers()
        if handler.selector is not None
    }
    assert selectors == {
        ("derops.io", "v1alpha1", "derassets"),
        ("derops.io", "v1alpha1", "dispatches"),
        ("cert-manager.io", "v1", "certificaterequests"),
    }


@pytest.mark.parametrize(
    ("event", "heard"),
    [
        ({"type": "ADDED", "object": {"metadata": METADATA}}, "take"),
        ({"type": None, "object": {"metadata": METADATA}}, "take"),
        ({"type": "MODIFIED", "object": {}}, "take"),
        ({"type": "DELETED", "object": {"metadata": METADATA}}, "drop"),
        ({"type": "DELETED", "object": {"metadata": {"name": 5}}}, "take"),
        ({"type": "ADDED", "object": None}, "take"),
        ({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "5"}}}, ""),
        ({"type": "ERROR", "object": {"code": 410}}, ""),
        ({}, "take"),
    ],
)
async def test_no_event_of_a_watch_makes_the_listener_fail(
    event: dict[str, Any], heard: str
) -> None:
    said: list[str] = []
    registry = make_registry(
        lambda *_: said.append("take"),
        lambda *_: said.append("drop"),
        asyncio.sleep,  # type: ignore[arg-type]
        asyncio.sleep,  # type: ignore[arg-type]
    )
    for handler in registry._watching.get_all_handlers():
        said.clear()
        await handler.fn(event=event)  # type: ignore[call-arg, misc, arg-type]
        assert said == [heard] * bool(heard)


def test_the_rights_are_the_least() -> None:
    file = ROOT / "charts" / "derops" / "files" / "operator-rules.yaml"
    rules = yaml.safe_load(file.read_text())

    resources = {resource for rule in rules for resource in rule["resources"]}
    verbs = {verb for rule in rules for verb in rule["verbs"]}
    assert "secrets" not in resources
    assert not any("*" in name for name in resources | verbs)
    (signers,) = [rule for rule in rules if rule["resources"] == ["signers"]]
    assert signers["resourceNames"] == ["clusterissuers.cert-manager.io/derops-agent"]
    (maps,) = [rule for rule in rules if "configmaps" in rule["resources"]]
    assert maps["resourceNames"] == ["derops-server-ca", "derops-agent-ca"]
