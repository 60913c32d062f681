"""The options of the sub-command. No client of Kubernetes is imported for them."""

import argparse
import os

OPERATOR = "derops-operator"
"""The Deployment of the operator."""

ANNOTATION = "derops.io/uninstall"
"""On the operator's Deployment: with the value Force, --force is given, also to the chart's Job."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the sub-command."""
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on although a device may not be reverted; each is named. "
        f"The annotation {ANNOTATION}: Force on the Deployment {OPERATOR} does the same",
    )
    parser.add_argument(
        "--timeout-seconds",
        type=_seconds,
        default=120.0,
        metavar="SECONDS",
        help="how long to wait until all dispatches have ended and are reverted (default 120)",
    )
    parser.add_argument(
        "--namespace",
        default=os.environ.get("DEROPS_OPERATOR_NAMESPACE") or "derops-system",
        help="where derops is installed (default: DEROPS_OPERATOR_NAMESPACE, else derops-system)",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400")
    return seconds
