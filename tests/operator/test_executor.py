"""What the API server does not let the operator do stops nothing else."""

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException
from tests.operator.certifying import request
from tests.operator.making import asset

from derops_operator.cluster.cache import Cache
from derops_operator.cluster.executor import Executor
from derops_operator.reconciling.actions import Approve, Deny
from derops_operator.resources.objects import Kind, ObjectKey

KEY = ObjectKey(Kind.ASSET, "pilot", "battery")


class Refusing:
    """An API server, or a webhook of it, that lets nobody answer a request."""

    def __init__(self, status: int) -> None:
        self.status, self.asked = status, 0

    async def patch_status(self, *_: Any) -> None:
        self.asked += 1
        raise ApiException(status=self.status, reason="referenced signer resource does not exist")


def actor(kube: Any) -> Executor:
    cache, events, unused = Cache(), None, None
    cache.put(Kind.ASSET, asset())
    cache.put(Kind.REQUEST, request(9, name="stranger"))
    return Executor(kube, events, cache, lambda *_: unused, lambda *_: unused, lambda: 0)  # type: ignore[arg-type]


def test_a_strangers_request_that_may_not_be_denied_holds_nothing_up() -> None:
    kube = Refusing(403)

    asyncio.run(actor(kube).act_on_asset(KEY, Deny(request="stranger", message="not ours")))

    assert kube.asked == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_denial_that_may_work_later_is_tried_again(status: int) -> None:
    with pytest.raises(ApiException):
        asyncio.run(
            actor(Refusing(status)).act_on_asset(KEY, Deny(request="stranger", message="not ours"))
        )


def test_an_approval_that_is_refused_is_told() -> None:
    with pytest.raises(ApiException):
        asyncio.run(actor(Refusing(403)).act_on_asset(KEY, Approve(request="stranger")))
