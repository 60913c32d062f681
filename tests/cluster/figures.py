"""Numbers that the cluster tests measure: printed beside what was promised, not asserted."""

import json

from tests.bench.results import Result


def say(name: str, value: float, unit: str, limit: float) -> None:
    """Print one number as a JSON line; ``limit`` is what was promised."""
    print("\n" + json.dumps(Result(name=name, value=value, unit=unit, limit=limit).as_dict()))
