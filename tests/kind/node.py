"""``python -m tests.kind.node kill|start``: what a cluster does when its node dies.

For tests: ``kill`` ends all of the node at once, as a power cut would, and ``start`` has it back
and waits until its API server answers and the node is ready.
"""

import argparse
import sys

from tests.kind.cluster import Cluster
from tests.kind.errors import ClusterError
from tests.kind.state import current


def main() -> int:
    """Run one command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.kind.node", description=__doc__)
    parser.add_argument("command", choices=["kill", "start"])
    arguments = parser.parse_args()
    try:
        cluster = current()
        kill(cluster) if arguments.command == "kill" else cluster.start()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def kill(cluster: Cluster) -> None:
    """End the node with all that runs in it, at once."""
    cluster.daemon.docker("kill", cluster.node)


if __name__ == "__main__":
    sys.exit(main())
