"""Uninstalling derops: no device keeps a setpoint, and no object of ours hangs when it is deleted.

Dispatches are ended while there is somebody to end them, the operator is stopped after that, and
the finalizers come off last. Of all else only what the operator would write again is removed. It
may be killed at any point, run again, or run twice at once: each step looks at what is there.
"""

import argparse

from derops_operator.uninstall.arguments import add_arguments

__all__ = ["add_arguments", "main"]


def main(arguments: argparse.Namespace) -> int:
    """Run the sub-command and return the exit code."""
    from derops_operator.uninstall import program

    return program.main(arguments)
