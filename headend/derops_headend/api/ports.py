"""What the routes need from outside. Each port has one implementation, which tests run as well."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

from derops_headend.api.assets import KnownAsset
from derops_headend.api.call import Call
from derops_headend.api.caller import Caller

T = TypeVar("T")
Manifest = dict[str, Any]


class Decision(NamedTuple):
    """Whether the caller may, and why."""

    allowed: bool
    rule: str


class Rights(Protocol):
    """What callers may do, by Kubernetes RBAC; also for resources that Kubernetes does not have."""

    async def decide(
        self,
        caller: Caller,
        verb: str,
        resource: str,
        namespace: str,
        name: str = "",
        *,
        fresh: bool = False,
    ) -> Decision:
        """Ask whether a caller may.

        Args:
            caller: Whose right it is.
            verb: As in RBAC.
            resource: Of the group derops.io, with a subresource after a slash.
            namespace: Empty = in all of them.
            name: The object's name; empty = any.
            fresh: Ask anew and believe no earlier answer, as each write does.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE.
        """

    async def require(self, call: Call, *, fresh: bool = False) -> None:
        """Check the right to what ``call.subject`` says, and note the decision there.

        Raises:
            ProblemError: NOT_FOUND for reads that are not allowed, and for writes if the caller may
                not even read the namespace; else FORBIDDEN; KUBERNETES_UNAVAILABLE.
        """

    async def namespaces(
        self, caller: Caller, verb: str, resource: str, among: Sequence[str]
    ) -> list[str]:
        """Return the namespaces, of those given, in which a caller may.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE.
        """


class RecordStage:
    """The stage of a call that a record is of: before anything is done, or after all was."""

    RECEIVED = "RequestReceived"
    COMPLETE = "ResponseComplete"


class Used(NamedTuple):
    """What an Idempotency-Key was used for, as the audit remembers it."""

    request_id: str
    at: datetime
    name: str
    """The name of the Dispatch."""

    object_uid: str
    """Empty = the answer of Kubernetes is not in the audit."""

    body_sha256: str
    change: dict[str, Any]


class Audit(Protocol):
    """Has a record of every call."""

    async def announce(self, call: Call) -> None:
        """Record that a change is about to be made; return once the record is durable.

        The call is ``is_announced`` then.

        Raises:
            ProblemError: AUDIT_UNAVAILABLE: nothing may be changed.
        """

    async def complete(self, call: Call, status: int, reason: str, sent_bytes: int) -> None:
        """Record the answer of a call; return once the record is durable.

        Raises:
            ProblemError: AUDIT_UNAVAILABLE: a call that was not announced is not answered.
        """

    async def refused(self, source: str, reason: str, method: str, path: str) -> None:
        """Record that a stranger was refused; many refusals of one source may become one record."""

    async def held_back(self, call: Call, status: int, reason: str) -> None:
        """Record that a call was refused unread, because its caller has too many.

        Many calls of one caller about one namespace may become one record, with their number.
        """

    async def find_key(
        self, caller_name: str, namespace: str, idempotency_key_sha256: str
    ) -> Used | None:
        """Return what a key was used for within 30 days, at any replica; None = for nothing.

        Raises:
            ProblemError: DATABASE_UNAVAILABLE: nobody can tell.
        """


class DispatchPage(NamedTuple):
    """A part of the Dispatches of a namespace."""

    items: list[Manifest]
    next: str | None
    """Where the next begins; None = this is the last."""


class Existence(Enum):
    """Whether an object was there in a stretch of time."""

    WAS_THERE = "was there"
    NEVER_WAS = "never was there"
    UNKNOWN = "the API server does not remember"


class Kubernetes(Protocol):
    """Assets and dispatches: read from one shared watch of each kind, written one by one."""

    def assets(self, namespaces: Sequence[str]) -> list[KnownAsset]:
        """Return the DERAssets of some namespaces, in no order.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE: nothing was heard yet, or not for too long.
        """

    def asset(self, namespace: str, name: str) -> KnownAsset | None:
        """Return a DERAsset; None = there is none.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE.
        """

    def known_namespaces(self) -> list[str]:
        """Return the namespaces that have a DERAsset or a Dispatch, sorted.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE.
        """

    async def namespace_made_at(self, namespace: str) -> datetime:
        """Return when a namespace was made; that it was made anew may become known 10 s late.

        Raises:
            ProblemError: NOT_FOUND: there is none; KUBERNETES_UNAVAILABLE, TOO_MANY_REQUESTS.
        """

    def dispatch_version(self) -> str:
        """Return a resourceVersion that is not newer than now; empty = none is known."""

    @property
    def heard_seconds_ago(self) -> float:
        """How old what is known of assets may be, in s."""

    async def appears(self, namespace: str, name: str, within_seconds: float) -> bool:
        """Wait until a Dispatch is heard of, no longer than that; tell whether it is."""

    async def dispatch(self, namespace: str, name: str) -> Manifest | None:
        """Read a Dispatch from the API server; None = there is none.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE, TOO_MANY_REQUESTS.
        """

    async def dispatches(
        self, namespace: str, *, limit: int, after: str | None, selector: Mapping[str, str]
    ) -> DispatchPage:
        """Read a page of Dispatches from the API server.

        Args:
            namespace: The namespace to list.
            limit: The most Dispatches of the page.
            after: ``next`` of an earlier page.
            selector: Selectable fields with the value each must have.

        Raises:
            ProblemError: PAGE_EXPIRED, INVALID, KUBERNETES_UNAVAILABLE, TOO_MANY_REQUESTS.
        """

    async def create_dispatch(
        self, namespace: str, manifest: Manifest, *, dry_run: bool
    ) -> Manifest:
        """Create a Dispatch; if ``dry_run``, only have the API server check it.

        Raises:
            ProblemError: CONFLICT: the name is taken; INVALID, FORBIDDEN, NOT_FOUND,
                TOO_MANY_REQUESTS; KUBERNETES_UNAVAILABLE: it may have been made all the same.
        """

    async def patch_dispatch(self, manifest: Manifest, spec: Mapping[str, Any]) -> Manifest:
        """Merge ``spec`` into that of a Dispatch, if it still has the version that was read.

        Raises:
            ProblemError: CONFLICT: it has another; NOT_FOUND, INVALID, FORBIDDEN,
                TOO_MANY_REQUESTS, KUBERNETES_UNAVAILABLE.
        """

    async def life_of(self, namespace: str, name: str, since_version: str) -> Existence:
        """Tell whether a Dispatch of a name existed at any time since a resourceVersion.

        The answer takes some seconds.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE, TOO_MANY_REQUESTS.
        """


class Database(Protocol):
    """The history, for reading alone."""

    async def read(self, ask: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call ``ask(connection, ...)`` in a thread, in a transaction that reads only.

        Raises:
            ProblemError: DATABASE_UNAVAILABLE, also if it took too long.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the routes need, as ``request.app.state.parts``."""

    rights: Rights
    audit: Audit
    kubernetes: Kubernetes
    database: Database
    now: Callable[[], datetime]
