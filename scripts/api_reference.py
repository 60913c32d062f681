"""Prints the page docs/reference/api.md, made from docs/reference/openapi.json."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DESCRIPTION = Path(__file__).resolve().parents[1] / "docs" / "reference" / "openapi.json"
_HEAD = """\
# The REST API

For those who write programs against the API. `make generate` makes this page from the
[description](openapi.json), which has each answer in full. What comes instead of an answer:
[problems](problems.md). Which right opens what: [roles](roles.md).
"""


def page_text() -> str:
    """Return the page."""
    described = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    schemas = described["components"]["schemas"]
    lines = [_HEAD]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            lines += [f"## {method.upper()} {path}", ""]
            told = operation["description"].replace("Return ", "Returns ", 1)
            said = f"{operation['summary']}. {told}"
            lines += [" ".join(said.replace("``", "`").split()), ""]
            rows = list(_parameters(operation, schemas))
            if rows:
                lines += ["| parameter | where | may be | meaning |", "| --- | --- | --- | --- |"]
                lines += [*rows, ""]
            lines += [_answers(operation), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _parameters(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    for each in operation.get("parameters", ()):
        schema = each["schema"]
        meaning = each.get("description") or schema.get("description", "")
        yield _row(each["name"], each["in"], schema, meaning, schemas, each.get("required", False))
    body = operation.get("requestBody")
    if body is None:
        return
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    yield from _fields(name, schemas)


def _fields(model: str, schemas: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, schema in schemas[model]["properties"].items():
        within = schema.get("$ref", "").rpartition("/")[2]
        if "properties" in schemas.get(within, ()):
            yield from _fields(within, schemas, f"{before}{key}.")
            continue
        required = key in schemas[model].get("required", ())
        meaning = schema.get("description", "")
        yield _row(before + key, "body", schema, meaning, schemas, required)


def _row(
    name: str, where: str, schema: dict[str, Any], meaning: str, schemas: dict[str, Any], must: bool
) -> str:
    may = _may(schema, schemas) + ("; required" if must else "")
    if schema.get("default") not in (None, ""):
        may += f"; default `{json.dumps(schema['default']).strip(chr(34))}`"
    cells = (f"`{name}`", where, may, " ".join(meaning.split()))
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"


def _may(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return in words what a value may be."""
    if "$ref" in schema:
        return _may(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        kinds = [each for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(_may(each, schemas) for each in kinds)
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if schema["type"] == "array":
        return f"several: {_may(schema['items'], schemas)}"
    kind = str(schema.get("format", schema["type"]))
    if "minimum" in schema and "maximum" in schema:
        return f"{kind}, {schema['minimum']:.0f} to {schema['maximum']:.0f}"
    return kind


def _answers(operation: dict[str, Any]) -> str:
    good = [
        f"`{status}` {', '.join(f'`{media}`' for media in answer.get('content', ()))}".strip()
        for status, answer in sorted(operation["responses"].items())
        if status < "400"
    ]
    return f"Answers: {'; '.join(good)}."


if __name__ == "__main__":
    sys.stdout.write(page_text())
