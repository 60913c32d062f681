"""Every dashboard is one that Grafana's schema knows, and each of its queries answers."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.alerts.watching import watching
from tests.e2e.acting import Pilot
from tests.rules.test_rules import exported, metrics_in
from tests.stack.calling import calling
from tests.stack.places import REPOSITORY
from tests.stack.postgres import READER
from tests.stack.stack import Stack
from tests.waiting import eventually

FILES = sorted((REPOSITORY / "charts/derops/files/dashboards").glob("*.json"))
DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FILES
}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
]
SOURCES = {"prometheus": "${datasource}", "postgres": "${database}"}
EMPTY_WHERE_ALL_IS_WELL = {"Gaps": "an agent had to drop samples, which none does here"}
NAMESPACE, ASSET = "dashboards", "battery"


def queries(source: str) -> Iterator[tuple[str, str]]:
    """Yield title and text of each query of a kind of data source."""
    for dashboard in DASHBOARDS.values():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                if target["datasource"]["type"] == source:
                    yield panel["title"], target["expr" if source == "prometheus" else "rawSql"]


def expand_promql(text: str) -> str:
    return text.replace("$__rate_interval", "1m").replace("$__range", "5m")


def expand_sql(text: str) -> str:
    """Return SQL as Grafana's data source makes it, for the last hour."""
    text = re.sub(
        r"\$__timeFilter\((\w+)\)",
        r"\1 between now() - interval '1 hour' and now() + interval '1 minute'",
        text,
    )
    text = re.sub(
        r"\$__timeGroup\((\w+), \$__interval\)", r"floor(extract(epoch from \1) / 10) * 10", text
    )
    return text.replace("${namespace}", NAMESPACE).replace("${asset}", ASSET)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_grafanas_schema_has_every_field(file: Path) -> None:
    ours = json.loads(file.read_text(encoding="utf-8"))
    register_default_plugins()
    parsed = json.loads(json.dumps(Dashboard.from_json(ours), cls=JSONEncoder))

    assert list(lost(ours, parsed)) == []
    assert 6 <= len(ours["panels"]) <= 10
    assert "derops" in ours["tags"]


def lost(ours: Any, parsed: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each value that the schema did not take over."""
    if isinstance(ours, dict) and isinstance(parsed, dict):
        for key, value in ours.items():
            if key in parsed:
                yield from lost(value, parsed[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(ours, list) and isinstance(parsed, list) and len(ours) == len(parsed):
        for index, (value, other) in enumerate(zip(ours, parsed, strict=True)):
            yield from lost(value, other, f"{path}[{index}]")
    elif ours != parsed:
        yield path


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_names_its_data_by_variable_and_has_a_runbook(panel: dict[str, Any]) -> None:
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]

    assert all(each["uid"] == SOURCES[each["type"]] for each in sources)
    assert panel["description"]
    assert panel["links"], "nothing says what to do"
    for link in panel["links"]:
        assert (REPOSITORY / link["url"]).is_file(), link["url"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_variable_is_defined(name: str) -> None:
    text = json.dumps(DASHBOARDS[name])
    defined = {each["name"] for each in DASHBOARDS[name]["templating"]["list"]}

    assert set(re.findall(r"\$\{(\w+)", text)) == defined


def test_no_panel_asks_for_a_metric_that_nobody_exports() -> None:
    asked = {metric for _, text in queries("prometheus") for metric in metrics_in(text)}

    assert len(asked) > 20
    assert asked <= exported()


@pytest.fixture
def pilot(stack: Stack) -> Iterator[Pilot]:
    with Pilot.created(stack, NAMESPACE) as pilot:
        yield pilot


@pytest.mark.timeout(400)  # where it is the first to need the whole product, it starts it
def test_every_query_answers_on_the_running_product(pilot: Pilot, tmp_path: Path) -> None:
    pilot.cluster.kubectl("create", "serviceaccount", "caller", "-n", pilot.namespace)
    caller = pilot.stack.caller(pilot.namespace, "caller")
    with watching(tmp_path, pilot.stack.ops_ports) as watch, calling(caller):
        pilot.battery(ASSET)
        pilot.dispatch("evening", ASSET)
        pilot.wait_for_phase("evening", "Complete")

        for title, text in queries("prometheus"):
            eventually(
                lambda text=text: [  # type: ignore[misc]
                    value for _, value in watch.query(expand_promql(text)) if not math.isnan(value)
                ],
                f"an answer for {title}: {text}",
            )
    with psycopg.connect(pilot.stack.postgres.url("derops", READER)) as database:
        for title, text in queries("postgres"):
            answer = database.execute(expand_sql(text).encode()).fetchall()
            assert any(any(row) for row in answer) or title in EMPTY_WHERE_ALL_IS_WELL, title
        for variable in DASHBOARDS["asset"]["templating"]["list"]:
            if variable["type"] == "query":
                rows = database.execute(expand_sql(variable["query"]).encode()).fetchall()
                assert {NAMESPACE, ASSET} & {value for (value,) in rows}
