"""What stands in for parts that are not there yet."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from derops_headend.api.call import Call
from derops_headend.api.ports import Manifest, Used

T = TypeVar("T")


class NoAudit:
    """Writes nothing down."""

    async def announce(self, call: Call) -> None:
        """Do nothing."""

    async def complete(self, call: Call, status: int, reason: str, sent_bytes: int) -> None:
        """Do nothing."""

    async def refused(self, source: str, reason: str, method: str, path: str) -> None:
        """Do nothing."""

    async def find_key(
        self, caller_name: str, namespace: str, idempotency_key_sha256: str
    ) -> Used | None:
        """Find nothing."""
        return None


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


class NoDatabase:
    """Reads nothing."""

    async def read(self, ask: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Fail."""
        raise NotImplementedError
