"""kopf's part: it watches three kinds and hands over what it hears. It decides nothing."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import kopf

from derops_operator.cluster.client import CHUNK
from derops_operator.resources.manifests import identify
from derops_operator.resources.objects import MANAGED_BY, Kind, ObjectKey

Take = Callable[[Kind, Mapping[str, Any]], None]
Drop = Callable[[ObjectKey, str | None], None]
Step = Callable[[], Awaitable[object]]

_GROUPS = {
    Kind.ASSET: ("derops.io", "v1alpha1"),
    Kind.DISPATCH: ("derops.io", "v1alpha1"),
    Kind.REQUEST: ("cert-manager.io", "v1"),
}

_OF_NO_OBJECT = ("BOOKMARK", "ERROR")


class _NoDiffs(kopf.DiffBaseStorage):
    """What kopf compares to find changes: nothing. It would copy each object in full to do so."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        return None


def make_registry(take: Take, drop: Drop, start: Step, stop: Step) -> kopf.OperatorRegistry:
    """Return kopf's handlers.

    Args:
        take: Called with each object as it is now.
        drop: Called with the key and uid of each object that was deleted.
        start: Waited for before anything is watched.
        stop: Ends all other tasks of the program. kopf takes them for its own and would wait 5 s.
    """

    async def start_up(settings: kopf.OperatorSettings, **_: object) -> None:
        configure(settings)
        await start()

    async def clean_up(**_: object) -> None:
        await stop()

    registry = kopf.OperatorRegistry()
    kopf.on.startup(registry=registry)(start_up)
    kopf.on.cleanup(registry=registry)(clean_up)
    kopf.on.login(registry=registry)(log_in)
    for kind, (group, version) in _GROUPS.items():
        kopf.on.event(group, version, kind.value, registry=registry, id=f"hear_{kind.value}")(
            _listener(kind, take, drop)
        )
    return registry


def configure(settings: kopf.OperatorSettings) -> None:
    """Make kopf an informer and nothing else."""
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.watching.chunk_size = CHUNK
    settings.watching.initial_streaming = False
    settings.watching.inactivity_timeout = 70
    settings.watching.reconnect_backoff = 1.0
    settings.watching.connect_timeout = 10
    settings.watching.label_selectors[Kind.REQUEST.value] = ",".join(
        f"{name}={value}" for name, value in MANAGED_BY.items()
    )
    settings.queueing.worker_limit = None
    # Until then kopf keeps a task and the whole object, managed fields included.
    settings.queueing.idle_timeout = 0.05
    settings.queueing.exit_timeout = 2.0
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, 8)
    settings.networking.enforce_retry_after = True
    settings.process.ultimate_exiting_timeout = 25
    settings.persistence.finalizer = "derops.io/unused"
    settings.persistence.consistency_timeout = 0
    settings.persistence.diffbase_storage = _NoDiffs()


async def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Log in by KUBECONFIG, else as the pod's service account; without an official client."""
    return kopf.login_with_kubeconfig(**kwargs) or kopf.login_with_service_account(**kwargs)


def _listener(kind: Kind, take: Take, drop: Drop) -> Callable[..., Any]:
    async def hear(event: Mapping[str, Any], **_: object) -> None:
        manifest, what = event.get("object", {}), event.get("type")
        if what in _OF_NO_OBJECT:
            return
        identity = identify(kind, manifest)
        if what == "DELETED" and identity is not None:
            drop(identity[0], identity[1])
        else:
            take(kind, manifest)

    return hear


def quieten() -> None:
    """Keep kopf's account of each event out of the log; its warnings stay."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
