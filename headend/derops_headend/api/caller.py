"""Who calls."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

_SERVICE_ACCOUNTS = "system:serviceaccount:"


class CallerKind(StrEnum):
    """By which kind of credential a caller is known."""

    KUBERNETES = "Kubernetes"
    STATIC = "Static"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever a credential belongs to; the name and the groups are those that RBAC knows."""

    kind: CallerKind
    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further facts of the authenticator, for the authoriser alone."""

    token_id: str = ""
    """Names the credential in the audit, and is no secret; empty = it has no id."""

    expires_at: datetime | None = None
    """When the credential expires; None = not told."""

    @property
    def share(self) -> str:
        """The share of scarce resources that it uses.

        ServiceAccounts use the share of their namespace: whoever may make one may make a thousand.
        """
        namespace, _, account = self.name.rpartition(":")
        return namespace if namespace.startswith(_SERVICE_ACCOUNTS) and account else self.name
