"""What a process does with memory that it has freed."""

import subprocess
import sys

FAULTS = """
import resource
{before}
def take() -> None:
    first, second = bytes(300_000), bytes(300_000)
def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
begun = faults()
for _ in range(100):
    take()
print(faults() - begun)
"""


def count_faults(before: str) -> int:
    """Return how many pages a process had to be given for buffers that it takes and frees."""
    return int(subprocess.check_output([sys.executable, "-c", FAULTS.format(before=before)]))


def test_memory_that_was_freed_is_used_again() -> None:
    keeping = "from derops.memory import keep_freed_memory; keep_freed_memory()"

    assert count_faults(keeping) < 100 < count_faults("") / 10
