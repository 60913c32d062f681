"""No module and no function of the product is too long to be read at once.

Branches are counted as the tool radon does: a condition of ``and``, ``or`` and a comprehension
counts as an ``if`` does. Ruff's C901, which ``make lint`` holds, counts statements alone.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = (
    "operator/derops_operator",
    "headend/derops",
    "headend/derops_headend",
    "agent/derops_agent",
    "cli/derops_cli",
)
GENERATED = ("_pb2.py", "_pb2_grpc.py")
MOST_LINES = 400
MOST_BRANCHES = 10
REASON = "# Branches: "
"""How a comment above a function begins that says why it has more."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            if not file.name.endswith(GENERATED):
                yield file


def name_of(module: Path) -> str:
    return module.relative_to(REPOSITORY).as_posix()


def functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield all functions below a node, those in functions too, by qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            name = f"{within}{child.name}"
            if isinstance(child, FUNCTIONS):
                yield name, child
            yield from functions(child, f"{name}.")
        else:
            yield from functions(child, within)


def count_branches(function: ast.AST) -> int:
    """Return the cyclomatic complexity of a function without those in it."""
    assert isinstance(function, FUNCTIONS)
    count, nodes = 1, list[ast.AST](function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            continue
        nodes += ast.iter_child_nodes(node)
        match node:
            case ast.If() | ast.IfExp():
                count += 1
            case ast.For() | ast.AsyncFor() | ast.While():
                count += 1 + bool(node.orelse)
            case ast.Try() | ast.TryStar():
                count += len(node.handlers) + bool(node.orelse)
            case ast.BoolOp():
                count += len(node.values) - 1
            case ast.comprehension():
                count += 1 + len(node.ifs)
            case ast.Match():
                count += sum(not is_catch_all(each) for each in node.cases)
    return count


def is_catch_all(case: ast.match_case) -> bool:
    return isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None


def has_reason(function: ast.AST, lines: list[str]) -> bool:
    """Tell whether the comment just above a function, and its decorators, gives a reason."""
    assert isinstance(function, FUNCTIONS)
    first = min(each.lineno for each in (function, *function.decorator_list))
    for line in reversed(lines[: first - 1]):
        if not line.lstrip().startswith("#"):
            return False
        if line.lstrip().removeprefix(REASON) != line.lstrip():
            return True
    return False


def find_branched() -> Iterator[tuple[str, bool]]:
    """Yield the functions with more branches than most, and whether a comment says why."""
    for module in modules():
        text = module.read_text(encoding="utf-8")
        for name, function in functions(ast.parse(text)):
            if count_branches(function) > MOST_BRANCHES:
                yield f"{name_of(module)}:{name}", has_reason(function, text.splitlines())


def test_no_module_is_long() -> None:
    long = {
        name_of(module)
        for module in modules()
        if len(module.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }

    assert sorted(long) == [], f"split these: they have over {MOST_LINES} lines"


def test_no_function_has_many_branches_without_a_reason() -> None:
    without_reason = {name for name, reason in find_branched() if not reason}

    assert sorted(without_reason) == [], (
        f"split these, or say above them why they have over {MOST_BRANCHES}: {REASON}..."
    )


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("pass", 1),
        ("if a and b or c: pass", 4),
        ("return 1 if a else 2", 2),
        ("for a in b: pass\nelse: pass", 3),
        ("return [a for a in b if a if not a]", 4),
        ("try: pass\nexcept A: pass\nexcept B: pass\nelse: pass", 4),
        ("match a:\n case 1: pass\n case 2: pass\n case _: pass", 3),
        ("def inner():\n if a: pass", 1),
    ],
)
def test_what_counts_as_a_branch(body: str, count: int) -> None:
    lines = "\n".join(f"  {line}" for line in body.splitlines())
    ((_, function), *_) = functions(ast.parse(f"def outer():\n{lines}"))

    assert count_branches(function) == count


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ("# Branches: one for each kind.", True),
        ("# Branches: one for each kind,\n# as the wire has them.\n@cached", True),
        ("# A comment.", False),
        ("# Branches: of something else\n", False),
        ("", False),
    ],
)
def test_a_reason_stands_just_above_its_function(above: str, expected: bool) -> None:
    text = f"{above}\ndef outer():\n  pass"
    ((_, function),) = functions(ast.parse(text))

    assert has_reason(function, text.splitlines()) is expected
