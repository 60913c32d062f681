"""What stands in for parts that are not there yet."""

from collections.abc import Sequence
from typing import TypeVar

from derops_headend.api.ports import Manifest

T = TypeVar("T")


class NoKubernetes:
    """Knows of nothing."""

    def assets(self, namespaces: Sequence[str]) -> list[Manifest]:
        """Return none."""
        return []

    def asset(self, namespace: str, name: str) -> Manifest | None:
        """Return none."""
        return None

    def known_namespaces(self) -> list[str]:
        """Return none."""
        return []
