"""Every alert is a rule that Prometheus takes, was seen to fire and to clear, and has a page."""

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram
from tests.repository.test_docs import METRIC_MODULES
from tests.stack.places import REPOSITORY
from tests.stack.prometheus import find_promtool

RULES = sorted((REPOSITORY / "charts/derops/files/alerts").glob("*.yaml"))
TESTS = sorted(Path(__file__).parent.glob("*.yaml"))
HEADINGS = ["Meaning", "Who is hurt", "Find out", "Do", "Over when"]
OF_OTHERS = {"up", "ALERTS", "process_start_time_seconds"}
"""Series of Prometheus itself, and of every program that uses prometheus-client on Linux."""

_NAME = re.compile(r"\b(derops[a-z0-9_:]*|up|ALERTS|process_[a-z_]+)\b(?=[\s{\[)]|$)")


def groups(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    return found


RULES_OF_ALL = [rule for file in RULES for group in groups(file) for rule in group["rules"]]
ALERTS = [rule for rule in RULES_OF_ALL if "alert" in rule]
RECORDED = {rule["record"]: rule for rule in RULES_OF_ALL if "record" in rule}


def kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def identify(alert: dict[str, Any]) -> str:
    return f"{alert['alert']} {alert['labels']['severity']}"


def exported() -> set[str]:
    names: set[str] = set()
    for module in METRIC_MODULES:
        for metric in vars(importlib.import_module(module)).values():
            if isinstance(metric, Counter):
                names.add(f"{metric._name}_total")
            elif isinstance(metric, Gauge):
                names.add(metric._name)
            elif isinstance(metric, Histogram):
                names |= {f"{metric._name}_{end}" for end in ("bucket", "count", "sum")}
    return names


def metrics_in(expression: str) -> set[str]:
    """Return the metrics of an expression, also through rules that record."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    plain = re.sub(r"\b(by|on|group_left|ignoring) *\([^)]*\)", r"\1 ()", plain)
    found: set[str] = set()
    for name in _NAME.findall(plain):
        found |= metrics_in(RECORDED[name]["expr"]) if name in RECORDED else {name}
    return found


def run_promtool(*arguments: str) -> str:
    """Return what promtool complains of; empty = nothing."""
    done = subprocess.run(
        [find_promtool(), *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else ""


def test_prometheus_takes_every_rule() -> None:
    assert run_promtool("check", "rules", *map(str, RULES)) == ""


@pytest.mark.parametrize("file", TESTS, ids=lambda file: str(file.stem))
def test_alerts_fire_and_clear_as_their_series_say(file: Path) -> None:
    assert run_promtool("test", "rules", str(file)) == ""


def cases(alert: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[bool]]]:
    """Yield each test that asks whether an alert fires, with the answers that it expects."""
    name, severity = alert["alert"], alert["labels"]["severity"]
    several = sum(each["alert"] == name for each in ALERTS) > 1
    for file in TESTS:
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            answers = [
                bool(each["exp_samples"])
                for each in test["promql_expr_test"]
                if f'alertname="{name}"' in each["expr"]
                and 'alertstate="firing"' in each["expr"]
                and (not several or f'severity="{severity}"' in each["expr"])
            ]
            if answers:
                yield test, answers


@pytest.mark.parametrize("alert", ALERTS, ids=identify)
def test_every_alert_is_tested_to_fire_to_clear_and_not_to_fire(alert: dict[str, Any]) -> None:
    seen = list(cases(alert))

    assert any(answers == [True, False] for _, answers in seen), "fires, then clears"
    assert any(not any(answers) for _, answers in seen), "does not fire"
    for test, _ in seen:
        given = {str(each["series"]).partition("{")[0] for each in test["input_series"]}
        assert given & metrics_in(alert["expr"]), "nothing is said that the alert looks at"


@pytest.mark.parametrize("alert", ALERTS, ids=identify)
def test_every_alert_has_words_and_a_page_that_says_what_to_do(alert: dict[str, Any]) -> None:
    notes = alert["annotations"]
    page = REPOSITORY / notes["runbook_url"]
    text = page.read_text(encoding="utf-8")

    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert "$value" in notes["description"] or "$labels" in notes["description"]
    assert "humanize " not in notes["description"], "a count that Prometheus extrapolates: 1.03"
    assert notes["runbook_url"] == f"docs/runbooks/{kebab(alert['alert'])}.md"
    assert text.startswith(f"# {alert['alert']}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert "```" in text.partition("## Find out")[2].partition("\n## ")[0], "no command"


def test_no_alert_asks_for_a_metric_that_nobody_exports() -> None:
    every = {metric for rule in RULES_OF_ALL for metric in metrics_in(rule["expr"])}

    assert len(every) > 30
    assert every <= exported() | OF_OTHERS


def test_no_page_is_of_an_alert_that_does_not_exist() -> None:
    pages = {page.stem for page in (REPOSITORY / "docs/runbooks").glob("derops-*.md")}

    assert pages == {kebab(alert["alert"]) for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=identify)
def test_the_page_of_metrics_names_every_alert(alert: dict[str, Any]) -> None:
    text = (REPOSITORY / "docs/reference/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| \[`{alert['alert']}`\]\(([^)]+)\) \| ([a-z, ]+) \|", text, re.M)

    ((link, severities),) = rows
    assert link == f"../runbooks/{kebab(alert['alert'])}.md"
    assert alert["labels"]["severity"] in severities.split(", ")
