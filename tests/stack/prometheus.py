"""Prometheus, and promtool, which knows what Prometheus makes of our metrics and rules."""

from pathlib import Path

from tests.stack import debian


def find_promtool() -> Path:
    """Return promtool: on PATH, or out of Debian's package, once for this user."""
    return debian.find_program("promtool", "prometheus", "usr/bin/promtool")


def find_prometheus() -> Path:
    """Return Prometheus: on PATH, or out of Debian's package, once for this user."""
    return debian.find_program("prometheus", "prometheus", "usr/bin/prometheus")
