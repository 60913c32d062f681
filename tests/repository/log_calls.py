"""The log calls of the source: which event is logged where, how loudly, and with which fields."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
OF_ASSET = frozenset({"namespace", "asset"})
OF_DISPATCH = frozenset({"namespace", "asset", "dispatch", "dispatch_uid", "request_id"})
SPREAD = {
    "asset_fields": OF_ASSET,
    "dispatch_fields": OF_DISPATCH,
    "wire_dispatch_fields": OF_DISPATCH,
    "log_fields": OF_DISPATCH,
    "_fields_of": OF_DISPATCH,
}
"""What a spread argument brings, by the function or property that makes it."""

STREAM = OF_ASSET | {"epoch"}
"""What ``logger_of`` binds."""

PROGRAMS = {
    "operator/derops_operator": "operator",
    "headend/derops/": "all",
    "headend/derops_headend/api": "API",
    "headend/derops_headend/storage": "writer",
    "headend/derops_headend/writing": "writer",
    "headend/derops_headend/writer.py": "writer",
    "headend/derops_headend/programs/word_leaver.py": "writer",
    "headend/derops_headend/programs/writer.py": "writer",
    "headend/derops_headend": "gateway",
    "agent/derops_agent": "agent",
}
"""Which program logs, by the beginning of the path; the first that fits."""

AGENT_OF_ASSET = tuple(
    f"agent/derops_agent/{part}/" for part in ("asset", "execution", "link", "drivers")
)
"""Where an agent works for one asset: its task has bound which, see ``derops_agent.host``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCall:
    """One call of a logger, with one of the events that it may log."""

    where: str
    event: str
    program: str
    levels: frozenset[str]
    fields: frozenset[str]


def log_calls() -> Iterator[LogCall]:
    """Yield all log calls of the programs.

    Raises:
        ValueError: One names its event, or its fields, in a way that cannot be followed.
    """
    for root in ("operator", "headend", "agent"):
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            yield from _calls_of(path.relative_to(REPOSITORY).as_posix(), path.read_text())


def _calls_of(path: str, text: str) -> Iterator[LogCall]:
    tree = ast.parse(text)
    bound = _bound(tree)
    spread = _assigned(tree)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and _is_log_call(node)):
            continue
        assert isinstance(node.func, ast.Attribute)
        arguments, levels = node.args, {node.func.attr}
        if node.func.attr == "log":
            levels = set(_levels(arguments[0]))
            arguments = arguments[1:]
        where = f"{path}:{node.lineno}"
        fields = set(_fields(node, spread, where))
        logger = ast.unparse(node.func.value)
        if logger.startswith("logger_of("):
            fields |= STREAM
        elif logger == "self._log":
            fields |= bound
        if path.startswith(AGENT_OF_ASSET):
            fields |= OF_ASSET
        for event in _events(arguments[0], where):
            yield LogCall(
                where=where,
                event=event,
                program=next(name for start, name in PROGRAMS.items() if path.startswith(start)),
                levels=frozenset("error" if each == "exception" else each for each in levels),
                fields=frozenset(fields),
            )


def _is_log_call(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in LEVELS | {"log"}:
        return False
    logger = ast.unparse(node.func.value)
    return logger in {"_log", "self._log"} or logger.startswith(
        ("logger_of(", "structlog.get_logger(")
    )


def _levels(argument: ast.expr) -> Iterator[str]:
    for node in ast.walk(argument):
        if isinstance(node, ast.Attribute) and node.attr.lower() in LEVELS:
            yield node.attr.lower()


def _events(argument: ast.expr, where: str) -> list[str]:
    parts = [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]
    events = [part.value for part in parts if isinstance(part, ast.Constant)]
    if len(events) != len(parts) or not all(isinstance(each, str) for each in events):
        raise ValueError(f"{where}: the event is no literal")
    return [str(each) for each in events]


def _fields(node: ast.Call, spread: dict[str, frozenset[str]], where: str) -> Iterator[str]:
    for keyword in node.keywords:
        if keyword.arg == "exc_info":
            continue
        if keyword.arg is not None:
            yield keyword.arg
            continue
        found = _spread_of(keyword.value, spread)
        if found is None:
            raise ValueError(f"{where}: what does **{ast.unparse(keyword.value)} bring?")
        yield from found


def _spread_of(value: ast.expr, known: dict[str, frozenset[str]]) -> frozenset[str] | None:
    if isinstance(value, ast.IfExp):
        return _spread_of(value.body, known)
    if isinstance(value, ast.Name):
        return known.get(value.id)
    if isinstance(value, ast.Call):
        value = value.func
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return SPREAD.get(name)


def _assigned(tree: ast.Module) -> dict[str, frozenset[str]]:
    """Return what local names hold that are made by one of ``SPREAD``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            brought = _spread_of(node.value, {})
            if brought is not None:
                found[node.targets[0].id] = brought
    return found


def _bound(tree: ast.Module) -> set[str]:
    """Return what a module binds to its ``self._log``."""
    return {
        keyword.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "bind"
        and ast.unparse(node.func.value).startswith("structlog.get_logger(")
        for keyword in node.keywords
        if keyword.arg is not None
    }
