"""The documentation has every name of the code, and no link that leads nowhere."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from derops.checks import MODES_BY_TYPE
from derops.data_path import CONDITION, LINK_OF, AssetFault, Link, SharedFault
from derops.installation import HOLDS, LINKS, NOT_TOLD
from derops.lifecycle import Phase, Reason
from derops.transitions import TRANSITIONS
from derops_agent.drivers.modbus import profile
from derops_agent.drivers.modbus.device import ModbusOptions
from derops_agent.drivers.modbus.points import ProfileSection
from derops_agent.drivers.simulated.faults import Faults
from derops_agent.drivers.simulated.options import MODELS, Options
from derops_agent.drivers.sunspec.options import SunSpecOptions
from derops_agent.execution.needs import NEEDS
from derops_agent.settings import AgentSettings
from derops_headend.api.problems import Slug
from derops_headend.api.settings import ApiSettings
from derops_headend.gateway.settings import GatewaySettings
from derops_headend.programs.writer import WriterSettings
from derops_operator.reconciling.device_conditions import DEVICE_CONDITIONS
from derops_operator.settings import OperatorSettings

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "docs" / "reference"
PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "charts").rglob("*.md"),
        *(REPOSITORY / "examples").rglob("*.md"),
    ]
)
IMPORT_ROOTS = ["operator", "headend", "agent", "cli"]
METRIC_MODULES = [
    "derops.metrics",
    "derops_headend.eventlog.metrics",
    "derops_operator.metrics",
    "derops_headend.gateway.metrics",
    "derops_headend.api.metrics",
    "derops_headend.api.audit.metrics",
    "derops_headend.storage.metrics",
    "derops_agent.metrics",
]
BOUNDED_MODULES = [
    "derops.devices",
    "derops.holders",
    "derops.observability",
    "derops.ops_server",
    "derops.rates",
    "derops_agent.asset.inbox",
    "derops_headend.eventlog.jetstream_words",
    "derops_headend.writing.word",
    "derops_operator.gateways.headend",
    "derops_agent.asset.orders",
    "derops_agent.drivers.modbus_connection",
    "derops_agent.drivers.modbus_line",
    "derops_agent.drivers.modbus_tcp",
    "derops_agent.telemetry.outbox",
    "derops_agent.link.stream",
    "derops_headend.api.assets",
    "derops_headend.api.audit.record",
    "derops_headend.api.callers.kubernetes",
    "derops_headend.api.kube",
    "derops_headend.api.limits",
    "derops_headend.api.outer",
    "derops_headend.api.reviews",
    "derops_headend.api.rights",
    "derops_headend.api.server",
    "derops_headend.api.sources",
    "derops_headend.api.watch",
    "derops_headend.api.audit.refusals",
    "derops_headend.eventlog.jetstream",
    "derops_headend.eventlog.sqlite",
    "derops_headend.fleet.asset_path",
    "derops_headend.gateway.agent_link",
    "derops_headend.gateway.control",
    "derops_headend.gateway.log_appender",
    "derops_headend.gateway.listener",
    "derops_headend.gateway.operator_queue",
    "derops_headend.gateway.report_desk",
    "derops_headend.gateway.unread_queue",
    "derops_operator.trust.bundles",
    "derops_operator.gateways.desired",
    "derops_operator.cluster.events",
    "derops_operator.cluster.status_writer",
    "derops_operator.gateways.intake",
    "derops_operator.gateways.devices",
    "derops_operator.gateways.replicas",
    "derops_operator.gateways.sync",
    "derops_operator.cluster.client",
    "derops_cli.bundle",
    "derops_cli.collecting",
    "derops_cli.kubectl",
    "derops_cli.timeline",
    "derops_cli.words",
]
UNITS = {"KiB": 1024, "MiB": 1024**2}
KINDS = {"derasset": "derassets", "dispatch": "dispatches"}


def rows(page: Path) -> dict[str, str]:
    """Return table rows by the names in code in their first column; the first of a name wins."""
    found: dict[str, str] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        first = line.split("|")[1] if line.startswith("| `") else ""
        found = dict.fromkeys(re.findall(r"`([^`]+)`", first), line) | found
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and schema of every leaf of an OpenAPI schema; conditions count as one leaf."""
    if path.endswith(".conditions"):
        yield path, schema
    elif "properties" in schema:
        for name, inner in schema["properties"].items():
            yield from fields(inner, f"{path}.{name}")
    elif "properties" in schema.get("items", {}):
        yield from fields(schema["items"], f"{path}[]")
    else:
        yield path, schema


def crd_fields(kind: str) -> dict[str, dict[str, Any]]:
    file = REPOSITORY / "crds" / f"derops.io_{KINDS[kind]}.yaml"
    version = yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]["versions"][0]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    return {
        path: schema
        for part in ("spec", "status")
        for path, schema in fields(properties[part], part)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{target} has no such heading"


def test_every_reason_is_on_the_reasons_page() -> None:
    found = rows(REFERENCE / "reasons.md")

    assert [reason for reason in Reason if reason not in found] == []
    for reason in Reason:
        phases, who = (
            {word.strip() for word in cell.split(",")} for cell in found[reason].split("|")[2:4]
        )
        saying = [each for each in TRANSITIONS if reason in each.reasons]
        assert phases == {str(each.end) for each in saying}, f"{reason} leads elsewhere"
        assert who == {each.actor.lower() for each in saying}, f"{reason} is said by others"


CONDITIONS = {
    "WantedCondition": 2,
    "_if_never": 2,
    "post": None,
    "Admission": None,
    "replace": None,
}
STREAMS = {
    "BadSyncError": 0,
    "IdentityRefusedError": 0,
    "StreamEndedError": 0,
    "Violation": None,
    "end": 0,
    "end_all": 0,
    "close": 0,
    "_close": 1,
    "_deadline": 1,
}


@pytest.mark.parametrize(
    ("headings", "said_by", "packages"),
    [
        pytest.param(
            ("Reasons", "Reasons of conditions", "Reasons of Events"),
            CONDITIONS,
            ["operator/derops_operator", "agent/derops_agent/execution"],
            id="conditions and Events",
        ),
        pytest.param(
            (
                "Reasons of a refused agent",
                "Reasons of a stream that ended",
                "Reasons of an operator's stream that ended",
            ),
            STREAMS,
            [
                "headend/derops_headend/access",
                "headend/derops_headend/fleet",
                "headend/derops_headend/gateway",
                "agent/derops_agent",
            ],
            id="streams",
        ),
    ],
)
def test_every_word_that_the_code_says_why_with_is_on_the_reasons_page(
    headings: tuple[str, ...], said_by: dict[str, int | None], packages: list[str]
) -> None:
    page = re.split(r"^#+ (.+)$", (REFERENCE / "reasons.md").read_text("utf-8"), flags=re.M)
    sections = dict(zip(page[1::2], page[2::2], strict=True))
    rows = re.findall(r"^\| (`[^|]+) \|", "".join(map(sections.__getitem__, headings)), re.M)
    explained = set(re.findall(r"`(\w+)`", "".join(rows)))
    assert all((REPOSITORY / package).is_dir() for package in packages)
    calls = [
        call
        for package in packages
        for file in (REPOSITORY / package).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
    ]

    said = {word for call in calls for word in words_for(call, said_by)}

    assert len(said) > 10
    assert said <= explained


def words_for(call: ast.Call, said_by: dict[str, int | None]) -> Iterator[str]:
    """Yield the words that a call gives as a reason."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in said_by:
        return
    place = said_by[name]
    given = [each.value for each in call.keywords if (each.arg or "").endswith("reason")]
    if place is not None:
        given += call.args[place : place + 1]
    for each in given:
        yield from choices(each)


def choices(value: ast.expr) -> Iterator[str]:
    """Yield the words that an expression may be, as far as they stand in it."""
    match value:
        case ast.IfExp(body=body, orelse=orelse):
            yield from (*choices(body), *choices(orelse))
        case ast.BoolOp(values=values):
            yield from (word for each in values for word in choices(each))
        case ast.Constant(value=str(word)) if word:
            yield word


def test_every_phase_is_on_the_phases_page() -> None:
    found = rows(REPOSITORY / "docs" / "concepts" / "phases.md")

    assert [phase for phase in Phase if phase not in found] == []


def test_the_table_of_modes_is_that_of_the_checks() -> None:
    text = (REPOSITORY / "docs" / "concepts" / "sign.md").read_text(encoding="utf-8")
    heading = next(line for line in text.splitlines() if line.startswith("| type | ActivePower"))
    modes = [cell.strip() for cell in heading.split("|")[2:-1]]

    for kind, supported in MODES_BY_TYPE.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {kind} |"))
        said = [cell.strip() for cell in row.split("|")[2:-1]]
        assert {mode for mode, word in zip(modes, said, strict=True) if word == "yes"} == supported


def test_the_table_of_points_that_an_order_needs_is_that_of_the_agent() -> None:
    text = (REPOSITORY / "docs/concepts/safety.md").read_text(encoding="utf-8")
    section = text.partition("## Which points an order needs")[2].partition("\n## ")[0]
    said = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in section.splitlines()
        if line.startswith("|")
    ][2:]

    assert said == [
        (need.orders, f"`{need.point}`", "ends" if need.ends else "goes on") for need in NEEDS
    ]


def test_every_condition_of_a_device_is_on_the_page_of_the_asset() -> None:
    assert set(DEVICE_CONDITIONS) <= set(rows(REFERENCE / "derasset.md"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_of_a_resource_has_exactly_its_fields(kind: str) -> None:
    documented = {name for name in rows(REFERENCE / f"{kind}.md") if name[:5] in ("spec.", "statu")}

    assert documented == set(crd_fields(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_of_a_resource_has_defaults_choices_and_bounds(kind: str) -> None:
    found = rows(REFERENCE / f"{kind}.md")

    for path, schema in crd_fields(kind).items():
        row = found[path]
        for choice in schema.get("enum", []):
            assert f"`{choice}`" in row, f"{path} lacks the choice {choice}"
        if "default" in schema:
            assert f"`{schema['default']}`" in row, f"{path} lacks its default"
        for bound in ("minimum", "maximum"):
            if path.startswith("spec.") and bound in schema:
                assert states_bound(row, schema[bound]), f"{path} lacks its {bound}"


def states_bound(row: str, bound: int) -> bool:
    """Tell whether a row names a bound; "above 0" is a minimum of 1."""
    return bool(re.search(rf"(?<!\d){bound}(?!\d)", row)) or (bound == 1 and "above 0" in row)


@pytest.mark.parametrize("kind", [OperatorSettings, GatewaySettings, WriterSettings, ApiSettings])
def test_every_setting_of_the_environment_is_on_the_settings_page(kind: type[BaseSettings]) -> None:
    found, prefix = rows(REFERENCE / "settings.md"), str(kind.model_config["env_prefix"])
    names = {prefix + name.upper(): field for name, field in kind.model_fields.items()}

    assert {name for name in found if name.startswith(prefix)} == set(names)
    for name, field in names.items():
        if field.default is not PydanticUndefined:
            default = "| |" if field.default in (None, ()) else f"| `{field.default}` |"
            assert default in found[name], f"{name} has another default"


def test_every_key_of_the_agents_file_is_on_the_settings_page() -> None:
    found = rows(REFERENCE / "settings.md")

    for path, default in keys(AgentSettings, ""):
        assert path in found, f"{path} is missing"
        if isinstance(default, str | int | float) and not isinstance(default, bool):
            assert f"| `{default}` |" in found[path], f"{path} has another default"


@pytest.mark.parametrize("model", MODELS)
def test_every_option_of_a_simulated_device_is_on_its_page(model: str) -> None:
    found = rows(REFERENCE / "simulated.md")

    assert model in found
    for name, field in MODELS[model].model_fields.items():
        row = found[str(field.alias)]
        assert f" {model}" in row or name in Options.model_fields, f"{field.alias} lacks {model}"


def test_every_option_of_a_sunspec_device_is_on_its_page() -> None:
    found = rows(REFERENCE / "sunspec.md")

    for path, default in keys(SunSpecOptions, ""):
        if isinstance(default, BaseModel):
            continue  # a section, of which each key has a row
        row = "required" if default is PydanticUndefined else f"`{default}`"
        assert f"| {row} |" in found[path], f"{path} has another default"


def test_every_option_of_a_modbus_device_and_key_of_its_profile_is_on_its_page() -> None:
    found = rows(REFERENCE / "modbus.md")
    sections = [each for each in vars(profile).values() if is_section(each)]

    for section in [ModbusOptions, *sections]:
        for field in section.model_fields.values():
            row = found[str(field.alias)]
            if isinstance(field.default, str | int | float):
                assert f"| `{field.default}` |" in row, f"{field.alias} has another default"


def is_section(value: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, ProfileSection)
        and value is not ProfileSection
    )


def test_every_fault_of_a_simulated_device_is_on_its_page() -> None:
    found = rows(REFERENCE / "simulated.md")

    for path, default in keys(Faults, ""):
        known = [name for name in found if name == path or name.startswith(f"{path}.")]
        assert known, f"{path} is missing"
        if isinstance(default, bool | int | float):
            assert f"| `{default}` |" in found[path], f"{path} has another default"


def keys(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, object]]:
    """Yield the path and default of every key of the agent's file."""
    for name, field in section.model_fields.items():
        path = prefix + (field.alias or name)
        yield path, field.default
        inner = field.annotation
        if getattr(inner, "__origin__", None) is list:
            inner, path = inner.__args__[0], f"{path}[]"  # type: ignore[union-attr]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{path}.")


def test_the_metrics_page_has_exactly_the_metrics() -> None:
    metrics = [
        metric
        for module in METRIC_MODULES
        for metric in vars(importlib.import_module(module)).values()
        if isinstance(metric, Counter | Gauge | Histogram)
    ]
    names = {
        next(iter(metric.describe())).name + ("_total" if isinstance(metric, Counter) else "")
        for metric in metrics
    }

    assert metric_rows() == names


def test_the_table_of_bounds_says_what_the_code_does() -> None:
    text = (REPOSITORY / "docs/concepts/guarantees.md").read_text(encoding="utf-8")
    table = text.partition("## Bounds")[2].partition("\n## ")[0]
    said = re.findall(r"`([A-Z_]+)` = ([\d,]+)(?: (KiB|MiB))?", table)
    assert len(said) > 20

    for name, number, unit in said:
        value = int(number.replace(",", "")) * UNITS.get(unit, 1)
        found = [
            getattr(module, name)
            for module in map(importlib.import_module, BOUNDED_MODULES)
            if hasattr(module, name)
        ]
        assert value in found, f"{name} is {found}"
    assert set(re.findall(r"`(derops_\w+)`", table)) <= metric_rows()


def metric_rows() -> set[str]:
    text = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    tables = text.partition("## What to watch")
    known = set(re.findall(r"^\| `(derops_\w+)` \|", tables[0], re.MULTILINE))
    assert set(re.findall(r"`(derops_\w+)`", tables[2])) <= known, "an alarm on no metric"
    return known


@pytest.mark.parametrize("root", IMPORT_ROOTS)
def test_an_import_root_is_no_package(root: str) -> None:
    assert not (REPOSITORY / root / "__init__.py").exists()


def test_every_attack_is_in_the_threat_model_and_has_a_number_of_its_own() -> None:
    told = (REPOSITORY / "docs/concepts/threats.md").read_text(encoding="utf-8")
    told = re.sub(
        r"([A-Z])(\d+) to \1(\d+)",
        lambda m: " ".join(f"{m[1]}{number}" for number in range(int(m[2]), int(m[3]) + 1)),
        told,
    )
    files = [
        file
        for place in ("api", "attacks", "e2e")
        for file in sorted((REPOSITORY / "tests" / place).glob("*.py"))
    ]
    tried = [
        number
        for file in files
        for number in re.findall(r'(?:"""|id=")([A-Z]\d+)[ :]', file.read_text(encoding="utf-8"))
    ]

    assert len(tried) > 60
    assert sorted(tried) == sorted(set(tried)), "two attacks have one number"
    assert set(re.findall(r"\b[A-Z]\d+\b", told)) == set(tried)


def test_the_page_of_the_installation_has_each_condition_and_each_reason() -> None:
    found = rows(REFERENCE / "installation.md")

    assert {*LINKS, *SharedFault, HOLDS, NOT_TOLD} == set(found)
    for fault in SharedFault:
        conditions = {each for each, link in LINKS.items() if link is LINK_OF[fault]}
        assert conditions & set(re.findall(r"\w+", found[fault].split("|")[2])), fault


def test_each_problem_of_the_api_has_its_page() -> None:
    assert {each.slug for each in Slug} <= anchors(REFERENCE / "problems.md")
    text = (REFERENCE / "problems.md").read_text(encoding="utf-8")
    for each in Slug:
        assert f'\n{each.status}, "{each.title}". ' in text


def test_the_tables_of_the_data_path_are_those_of_the_code() -> None:
    page = (REFERENCE / "data-path.md").read_text(encoding="utf-8")
    sections = page.split("\n## ")
    tables = {
        section.partition("\n")[0]: re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
        for section in sections[1:]
    }
    links = re.findall(r"^\| `(\w+)` \|", sections[0], re.MULTILINE)

    assert links == list(Link)
    for title, faults in (
        ("What is broken for one asset", AssetFault),
        ("What is broken for all", SharedFault),
    ):
        assert tables[title] == [(str(fault), str(LINK_OF[fault])) for fault in faults]
    assert CONDITION in rows(REFERENCE / "derasset.md")


def test_the_list_of_runbooks_has_each_page_and_each_alert_once() -> None:
    folder = REPOSITORY / "docs" / "runbooks"
    text = (folder / "README.md").read_text()
    listed = re.findall(r"^\| (?:[^|]+\| )?\[[^]]+\]\(([a-z-]+\.md)\)", text, re.MULTILINE)

    assert sorted(listed) == sorted(p.name for p in folder.glob("*.md") if p.name != "README.md")
    rules = (REPOSITORY / "charts/derops/files/alerts").glob("*.yaml")
    alerts = set(re.findall(r"alert: (\w+)", "".join(file.read_text() for file in rules)))
    assert set(re.findall(r"\[(Derops\w+)\]", text)) == alerts
