"""One client with one order, which it repeats by one key, and what became of it."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import kubernetes
import psycopg
from tests.api.cutting import CutProxy
from tests.api.rig import ApiProcess
from tests.stack.controlplane import ControlPlane
from tests.stack.processes import http_ok
from tests.waiting import eventually

from derops_headend.api.caller import Caller as CallerFact
from derops_headend.api.caller import CallerKind
from derops_headend.api.orders import name_of

_GROUP = ("derops.io", "v1alpha1")


class Caller:
    """The dispatcher of a namespace.

    Args:
        token: Of its ServiceAccount ``dispatcher``.
        namespace: Where it orders.
        order: The body of its calls.
        key: Its Idempotency-Key.
        database_url: Of the audit; of the writer's role.
        kube: Where the order becomes a Dispatch.
    """

    def __init__(
        self,
        token: str,
        namespace: str,
        order: dict[str, Any],
        key: str,
        *,
        database_url: str,
        kube: ControlPlane,
    ) -> None:
        self._headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
        self._namespace, self._order = namespace, order
        self._database_url, self._kube = database_url, kube
        self._pool = ThreadPoolExecutor(1)
        self.path = f"/v1/namespaces/{namespace}/dispatches"
        account = CallerFact(
            kind=CallerKind.KUBERNETES, name=f"system:serviceaccount:{namespace}:dispatcher"
        )
        self.name = name_of(account, namespace, key)
        """Of what the order becomes."""
        client = kubernetes.config.new_client_from_config(kube.kubeconfig)
        self._objects = kubernetes.client.CustomObjectsApi(client)

    @property
    def exists(self) -> bool:
        """Whether the Dispatch of the order is there; asked at the API server itself."""
        found = self._objects.list_namespaced_custom_object(
            *_GROUP, self._namespace, "dispatches", field_selector=f"metadata.name={self.name}"
        )
        return bool(found["items"])

    @property
    def creates(self) -> int:
        """How often the API server made it, by its own audit."""
        return sum(
            each["verb"] == "create"
            and each["objectRef"].get("name") == self.name  # type: ignore[attr-defined]
            and each["responseStatus"]["code"] == 201  # type: ignore[index]
            for each in self._kube.audit_events()
        )

    def delete(self) -> None:
        """Delete it, as by hand."""
        self._objects.delete_namespaced_custom_object(
            *_GROUP, self._namespace, "dispatches", self.name
        )

    def close(self) -> None:
        self._pool.shutdown()
        self._objects.api_client.close()

    def call(self, url: str) -> httpx.Response:
        """Order, at an API of a URL."""
        return httpx.post(f"{url}{self.path}", json=self._order, headers=self._headers, timeout=30)

    def insist(self, api: ApiProcess) -> httpx.Response:
        """Repeat as long as the API says that it is of use, and as late as it says."""
        while True:
            answer = self.call(api.url)
            if "retry-after" not in answer.headers:
                return answer
            time.sleep(int(answer.headers["retry-after"]))

    @contextmanager
    def held(self, api: ApiProcess, proxy: CutProxy) -> Iterator["Future[httpx.Response]"]:
        """Call; within, the order is announced, and its create waits in the proxy."""
        self._look(api)
        with psycopg.connect(self._database_url) as connection:
            connection.execute("lock table audit_event in share row exclusive mode")
            answer = self._pool.submit(self.call, api.url)
            with psycopg.connect(self._database_url, autocommit=True) as looking:
                _until(
                    looking, "select 1 from pg_locks where not granted and locktype = 'relation'"
                )
                proxy.hold()
                connection.rollback()
                _until(
                    looking,
                    "select 1 from audit_event where stage = 'RequestReceived' "
                    f"and name = '{self.name}'",
                )
        assert proxy.held.wait(60)
        yield answer

    def _look(self, api: ApiProcess) -> None:
        """Have the API connect to Kubernetes: no handshake gets through what holds its answers."""
        httpx.get(f"{api.url}{self.path}/{self.name}", headers=self._headers, timeout=30)


def restart(api: ApiProcess) -> None:
    """Start an API that was killed, with the disk that it left."""
    api.process.start()
    api.process.wait_until(http_ok(f"http://127.0.0.1:{api.ops_port}/readyz"))


def _until(looking: psycopg.Connection, question: str) -> None:
    eventually(lambda: looking.execute(question.encode()).fetchone())
