"""A Prometheus that scrapes the stack and evaluates our rules, faster than in production."""

import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.stack.places import REPOSITORY, free_port
from tests.stack.processes import Process, http_ok
from tests.stack.prometheus import find_prometheus

RULES = REPOSITORY / "charts" / "derops" / "files" / "alerts"
OBJECTIVES = "objectives"
"""Burn rates need hours: promtool tests them by series, and they are left out here."""

EVERY_SECONDS = 5
LONGEST_FOR_SECONDS = 30
"""``for`` of every rule is cut to this: what must last for 15 minutes would take all day."""

LONGEST_RANGE_SECONDS = 120
"""Every range is cut to this, so that what rose once is soon over."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True, order=True)
class Firing:
    """An alert that fires."""

    name: str
    description: str


def hasten(rules: str) -> str:
    """Return rules with ``for`` and ranges cut; limits and all else are as they are."""
    rules = re.sub(
        r"(?m)^( +for: )(\d+)([smhd])$",
        lambda found: f"{found[1]}{_cut(found[2], found[3], LONGEST_FOR_SECONDS)}",
        rules,
    )
    rules = re.sub(
        r"\[(\d+)([smhd])\]",
        lambda found: f"[{_cut(found[1], found[2], LONGEST_RANGE_SECONDS)}]",
        rules,
    )
    return re.sub(
        r"\boffset (\d+)([smhd])",
        lambda found: f"offset {_cut(found[1], found[2], LONGEST_RANGE_SECONDS)}",
        rules,
    )


def _cut(number: str, unit: str, most_seconds: int) -> str:
    return f"{min(int(number) * _UNITS[unit], most_seconds)}s"


class Watch:
    """What a Prometheus of one's own says."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """Return labels and value of each series that an expression gives now."""
        answer = self._ask(f"query?query={urllib.parse.quote(expression)}")
        return [(each["metric"], float(each["value"][1])) for each in answer["result"]]

    def firing(self) -> set[Firing]:
        """Return the alerts that fire now."""
        return {
            Firing(each["labels"]["alertname"], each["annotations"]["description"])
            for each in self._ask("alerts")["alerts"]
            if each["state"] == "firing"
        }

    def names(self) -> set[str]:
        """Return the names of the alerts that fire or are about to."""
        return {each["labels"]["alertname"] for each in self._ask("alerts")["alerts"]}

    def _ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}", timeout=10) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
        return data


@contextmanager
def watching(directory: Path, ops_ports: Mapping[str, int]) -> Iterator[Watch]:
    """Run Prometheus over programs by their ops ports; it ends with the block."""
    place = directory / "prometheus"
    rules = place / "rules"
    rules.mkdir(parents=True, exist_ok=True)
    for file in RULES.glob("*.yaml"):
        if file.stem != OBJECTIVES:
            (rules / file.name).write_text(hasten(file.read_text(encoding="utf-8")))
    config = {
        "global": {
            "scrape_interval": f"{EVERY_SECONDS}s",
            "scrape_timeout": f"{EVERY_SECONDS}s",
            "evaluation_interval": f"{EVERY_SECONDS}s",
        },
        "rule_files": [f"{rules}/*.yaml"],
        "scrape_configs": [
            {"job_name": f"derops-{part}", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for part, port in ops_ports.items()
        ],
    }
    (place / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    process = Process(
        "prometheus",
        [
            str(find_prometheus()),
            f"--config.file={place / 'prometheus.yaml'}",
            f"--storage.tsdb.path={place / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
        directory=place,
    )
    process.start()
    try:
        process.wait_until(http_ok(f"http://127.0.0.1:{port}/-/ready"))
        yield Watch(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()


def look_for(seconds: float) -> Iterator[float]:
    """Yield the seconds that have passed, again and again, until there are so many."""
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        yield passed
        time.sleep(1)
