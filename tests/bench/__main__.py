"""`make bench`: what the product costs, beside what the machine can do, in the same run.

Prints one JSON object a line: name, value, unit, limit (the physical limit measured in this run, or
the figure that was promised) and ratio = value / limit.
"""

import json

from tests.bench import dispatch_latency, fleet_memory
from tests.bench.results import Result
from tests.stack.stack import Stack


def main() -> None:
    with Stack() as stack:
        for measure in (dispatch_latency.measure, fleet_memory.measure):
            for result in measure(stack):
                _print(result)


def _print(result: Result) -> None:
    print(json.dumps(result.as_dict()), flush=True)


main()
