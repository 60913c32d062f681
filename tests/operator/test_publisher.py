"""From decisions to stored statuses, where one is made while another is being stored."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tests.operator.making import Story, asset, at, dispatch, holding, view
from tests.operator.test_assets import after, decide
from tests.operator.test_events import queued

from derops_operator.cluster.cache import Cache
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.publisher import Publisher
from derops_operator.cluster.status_writer import StatusWriter
from derops_operator.reconciling.dispatches import reconcile_dispatch
from derops_operator.resources.objects import Kind, Meta, ObjectKey
from derops_operator.workqueue import WorkQueue


class SlowKube:
    """Stores a status; the controller looks at the dispatch again meanwhile."""

    def __init__(self) -> None:
        self.writes = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, Any]) -> Any:
        self.writes += 1
        self.meanwhile()
        return {"metadata": {"resourceVersion": "11"}, "status": patch}


async def test_an_end_that_is_decided_again_while_it_is_stored_is_stored_once() -> None:
    story = Story(dispatch(submitted=True)).look(1)
    submitted, unsent = story.dispatch, view(holding(written_us=0))
    key, cache, kube = ObjectKey(Kind.DISPATCH, "pilot", "peak"), Cache(), SlowKube()
    cache.put(Kind.DISPATCH, submitted)

    def take(kind: Kind, manifest: Mapping[str, Any]) -> None:
        meta = replace(submitted.meta, resource_version="11")
        status = {**submitted.status, **manifest["status"]}
        cache.put(kind, replace(submitted, meta=meta, status=status))

    publisher = Publisher(
        cache,
        StatusWriter(kube),  # type: ignore[arg-type]
        EventWriter(kube),  # type: ignore[arg-type]
        take,
        WorkQueue(),
    )

    def decide(seconds: int) -> None:
        decision = reconcile_dispatch(submitted, story.asset, unsent, at(seconds))
        assert decision.status["phase"] == "Expired"
        publisher.want(key, decision.status)

    decide(200)
    kube.meanwhile = lambda: decide(201)
    await publisher.publish(key)
    await publisher.publish(key)

    assert kube.writes == 1


async def test_what_is_not_known_of_an_asset_is_told_once_it_is_stored() -> None:
    subject, flying = asset(operatingState="OutOfService"), dispatch(submitted=True)
    subject = after(subject, decide(subject, seconds=1, dispatches=[flying]))
    key, cache, kube = ObjectKey(Kind.ASSET, "pilot", "battery"), Cache(), SlowKube()
    cache.put(Kind.ASSET, subject)
    events = EventWriter(kube)  # type: ignore[arg-type]
    publisher = Publisher(
        cache,
        StatusWriter(kube),  # type: ignore[arg-type]
        events,
        lambda kind, manifest: None,
        WorkQueue(),
    )

    publisher.want(key, decide(subject, seconds=70, dispatches=[flying]).status)
    assert queued(events) == []

    await publisher.publish(key)
    assert queued(events) == [("Warning", "RevertUnknown")]
