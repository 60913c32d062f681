"""What the demonstration shows: a live table on a terminal, a line for each change elsewhere."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

_PHASE_STYLES = {
    "Active": "bold cyan",
    "Complete": "green",
    "Rejected": "red",
    "Failed": "red",
    "Expired": "red",
    "Cancelled": "yellow",
    "Superseded": "yellow",
}
_BAR_COLUMNS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the resources and the database say at the moment."""

    assets: list[dict[str, Any]]
    dispatches: list[dict[str, Any]]
    watts: dict[tuple[str, str], float | None]


class Screen:
    """The terminal, or what stands in its place."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self.interactive = self._console.is_terminal
        self._cleanup = ExitStack()
        self._live: Live | None = None
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self.interactive:
            self._live = self._cleanup.enter_context(
                Live(console=self._console, auto_refresh=False)
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def say(self, what: RenderableType) -> None:
        self._console.print(what)

    def show(self, view: View) -> None:
        """Redraw the table, or print what is new."""
        if self._live is not None:
            self._live.update(Group(_assets(view), _dispatches(view)), refresh=True)
            return
        for name, text in _lines(view).items():
            if self._told.get(name) != text:
                self._told[name] = text
                self._console.print(f"  {name:<44} {text}", markup=False)


def outcome(name: str, status: dict[str, Any]) -> str:
    """Return what became of a dispatch, in one line."""
    text = f"{name}: {status.get('phase')}"
    if status.get("reason"):
        text += f", {status['reason']}"
    if status.get("message"):
        text += f": {status['message']}"
    execution = status.get("execution", {})
    if "activeSeconds" in execution:
        text += f" (held for {execution['activeSeconds']} s)"
    return text


def power(asset: str, samples: Sequence[tuple[Any, ...]]) -> Table:
    """Return the measured power of an asset as rows with a bar, about one a second."""
    table = Table(title=f"measured power of {asset}, from the database", title_justify="left")
    table.add_column("time (UTC)")
    table.add_column("setpoint W", justify="right")
    table.add_column("measured W", justify="right")
    table.add_column("")
    largest = max((abs(watts or 0) for _, watts, _ in samples), default=0) or 1
    last_second = None
    for at, watts, setpoint in samples:
        if at.replace(microsecond=0) == last_second:
            continue
        last_second = at.replace(microsecond=0)
        table.add_row(
            f"{at:%H:%M:%S}",
            "-" if setpoint is None else f"{setpoint:.0f}",
            "-" if watts is None else f"{watts:.0f}",
            "█" * round(abs(watts or 0) / largest * _BAR_COLUMNS),
        )
    return table


def record(found: dict[str, Any]) -> str:
    """Return a record of the audit, in one line."""
    who = str(found["principal"]["name"]).removeprefix("system:serviceaccount:")
    text = f"  {found['at']} {found['stage']}: {who} may {found['verb']} {found['resource']}"
    return f"{text}, answered {found['status']}" if "status" in found else text


def invitation(kubeconfig: str, kubectl: str) -> str:
    """Return what a person can do now."""
    return (
        "\nThe stack stays up until Ctrl-C. In another terminal:\n\n"
        f"  export KUBECONFIG={kubeconfig}\n"
        f"  alias kubectl={kubectl}   # unless you have one\n"
        "  kubectl get dera,dsp -A -o wide\n"
        "  kubectl describe dsp -A\n"
    )


def _assets(view: View) -> Table:
    table = _table("asset", "type", "connected", "dispatch")
    table.add_column("measured W", justify="right")
    for item in view.assets:
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        table.add_row(
            "/".join(key),
            item["spec"]["type"],
            _condition(item, "Connected"),
            item.get("status", {}).get("activeDispatch", ""),
            _watts(view.watts.get(key)),
        )
    return table


def _dispatches(view: View) -> Table:
    table = _table("dispatch", "asset", "setpoint", "phase", "reason")
    for item in view.dispatches:
        status = item.get("status", {})
        phase = status.get("phase", "")
        table.add_row(
            item["metadata"]["name"],
            item["spec"]["assetRef"]["name"],
            _setpoint(item),
            f"[{_PHASE_STYLES.get(phase, 'default')}]{phase}",
            status.get("reason", ""),
        )
    return table


def _table(*headings: str) -> Table:
    """Return a table that fits 80 columns: rules under the heading and nowhere else."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading)
    return table


def _lines(view: View) -> dict[str, str]:
    lines = {}
    for item in view.assets:
        lines[_title("DERAsset", item)] = f"Connected={_condition(item, 'Connected')}"
    for item in view.dispatches:
        status = item.get("status", {})
        text = f"{status.get('phase', '')} {_setpoint(item)}"
        if status.get("reason"):
            text += f" ({status['reason']})"
        lines[_title("Dispatch", item)] = text
    return lines


def _title(kind: str, item: dict[str, Any]) -> str:
    return f"{kind} {item['metadata']['namespace']}/{item['metadata']['name']}"


def _condition(item: dict[str, Any], kind: str) -> str:
    conditions = item.get("status", {}).get("conditions", [])
    return next((str(entry["status"]) for entry in conditions if entry["type"] == kind), "")


def _setpoint(item: dict[str, Any]) -> str:
    setpoint = dict(item["spec"]["setpoint"])
    mode = setpoint.pop("mode")
    watts = next(iter(setpoint.values()), None)
    return mode if watts is None else f"{mode} {watts} W"


def _watts(watts: float | None) -> str:
    return "" if watts is None else f"{watts:.0f}"
