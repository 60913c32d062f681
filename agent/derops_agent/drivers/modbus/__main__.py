"""Prints the JSON schema of a profile, for editors; ``make generate`` stores it."""

import json
import sys

from derops_agent.drivers.modbus.profile import Profile


def schema_text() -> str:
    """Return the JSON schema of a profile."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Profile.model_json_schema(),
    }
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
