"""The API does what its description says, whoever calls: by schemathesis, with all its checks.

DEROPS_EXAMPLES is how many cases an operation gets, beside all that its schema has an edge for. By
default they are few, without the edges.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.api.rig import ApiProcess, Tenant
from tests.crds.manifests import asset_manifest
from tests.stack.places import REPOSITORY

DESCRIPTION = REPOSITORY / "docs" / "reference" / "openapi.json"
PROGRAM = Path(sys.executable).parent / "schemathesis"
EXAMPLES = int(os.environ.get("DEROPS_EXAMPLES", "0"))
PHASES = "examples,coverage,fuzzing,stateful" if EXAMPLES else "fuzzing"

ASSET = asset_manifest("battery-7", metadata={"namespace": "tenant-a"})

CONFIG = """\
[parameters]
"path.namespace" = "tenant-a"
"path.name" = "battery-7"

# All checks are on. Two know fewer refusals than there are: 413 is one, and no schema says that a
# span begins before it ends, that a page is one that was given out (else 422, or 410 where it is no
# longer kept), or that a dry run alone goes without a key.
[checks]
negative_data_rejection.expected-statuses = [
    "400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "429",
]

[[operations]]
include-operation-id = {pages_and_spans}
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "409", "410", "422", "429",
]
"""


def operations() -> list[dict[str, Any]]:
    described = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    return [operation for path in described["paths"].values() for operation in path.values()]


def rules_beyond_schema() -> list[str]:
    """Return the operations of which no schema says all that a request must be."""
    ruled = {"after", "from", "since", "Idempotency-Key"}
    return [
        operation["operationId"]
        for operation in operations()
        if ruled & {each["name"] for each in operation.get("parameters", [])}
    ]


def run(api: ApiProcess, directory: Path, token: str | None) -> str:
    config = directory / "schemathesis.toml"
    text = CONFIG.format(pages_and_spans=json.dumps(rules_beyond_schema()))
    config.write_text(text, encoding="utf-8")
    shown = [f"--header=Authorization:Bearer {token}"] if token else []
    done = subprocess.run(
        [
            str(PROGRAM), f"--config-file={config}", "--no-color", "run",
            str(DESCRIPTION), f"--url={api.url}",
            f"--max-examples={EXAMPLES or 3}", f"--phases={PHASES}",
            "--seed=1", "--no-shrink", "--continue-on-failure", "--warnings=off",
            "--suppress-health-check=all", "--rate-limit=auto", *shown,
        ],
        capture_output=True, text=True, cwd=directory, timeout=400 + 400 * EXAMPLES, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(500 + 400 * EXAMPLES)
@pytest.mark.parametrize("who", ["owner", "another tenant", "nobody"])
def test_the_api_keeps_to_its_description(
    api: ApiProcess, tenant_a: Tenant, tenant_b: Tenant, tmp_path: Path, who: str
) -> None:
    """Whatever may be sent, and what may not, by the owner, another tenant, and a stranger."""
    tenant_a.kube.apply(ASSET)
    tokens = {
        "owner": tenant_a.token("dispatcher"),
        "another tenant": tenant_b.token("dispatcher"),
        "nobody": None,
    }

    said = run(api, tmp_path, tokens[who])

    assert f"Tested: {len(operations())}" in said


def test_no_parameter_is_said_to_be_null() -> None:
    """No text of a query is a null: generated clients would send the word."""
    for operation in operations():
        for parameter in operation.get("parameters", []):
            assert '"null"' not in json.dumps(parameter["schema"]), parameter
