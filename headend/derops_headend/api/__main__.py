"""``python -m derops_headend.api`` prints the API's description."""

import json
import sys

from derops_headend.api.application import make_application


def description_text() -> str:
    """Return the OpenAPI document as it is committed."""
    return json.dumps(make_application(None).openapi(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(description_text())
