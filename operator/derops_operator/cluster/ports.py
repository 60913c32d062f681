"""What the operator's core asks of its surroundings."""

from collections.abc import Mapping
from typing import Protocol

from derops.wire.v1 import control_pb2
from derops_operator.cluster.client import Manifest
from derops_operator.resources.certificates import Request
from derops_operator.resources.objects import Kind, Meta, ObjectKey


class Api(Protocol):
    """The API server; ``cluster.client.Kube`` says what each call promises and raises."""

    async def read(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """Return an object as it is now."""

    async def set_finalizer(self, kind: Kind, meta: Meta, *, present: bool) -> Manifest:
        """Put our finalizer on an object, or take it off."""

    async def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, object]) -> Manifest:
        """Merge a patch into an object's status."""

    async def delete(self, kind: Kind, meta: Meta) -> None:
        """Delete an object."""

    async def apply(self, kind: Kind, manifest: Mapping[str, object]) -> Manifest:
        """Create an object or bring it in line."""


class Queue(Protocol):
    """Keys to work on; ``WorkQueue`` says what each call of this and the next promises."""

    def __len__(self) -> int:
        """Return how many keys are ready."""

    def add(self, key: ObjectKey) -> None:
        """Queue a key now."""

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        """Queue a key after a delay."""


class Worked(Protocol):
    """A queue as one of its workers sees it."""

    def add_failed(self, key: ObjectKey) -> float:
        """Queue a key again after a back-off; return its seconds."""

    def forget(self, key: ObjectKey) -> None:
        """Say that a key succeeded."""

    def done(self, key: ObjectKey) -> None:
        """Say that the work on a key ended, well or not."""


class Guard(Protocol):
    """Who knows since when nobody can forge who ordered a dispatch."""

    guarded_since_us: int | None

    async def look(self) -> None:
        """Find out anew."""


class Listener(Protocol):
    """Who hears of what the core does not decide on."""

    def record(self, transition: control_pb2.HeadendTransition) -> None:
        """Send a transition to the history."""

    def note_request(self, request: Request) -> None:
        """Hear of a CertificateRequest that is new or has changed."""

    def note_namespace(self, namespace: str) -> None:
        """Hear that an asset of a namespace came, changed or went."""
