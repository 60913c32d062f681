"""Callers of the API: ServiceAccounts with a token of its audience."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx

AUDIENCE = "derops-api"
_CALL_SECONDS = 30.0


class Caller:
    """One account that calls the API.

    Args:
        kubectl: Runs kubectl as somebody who may make the token.
        account: Namespace and name of the ServiceAccount.
        url: Of the API.
        authority: PEM of the authority of its certificate.
        name: What the certificate must be for, where that is not the host of ``url``.
    """

    def __init__(
        self,
        kubectl: Callable[..., str],
        account: tuple[str, str],
        url: str,
        authority: str,
        name: str | None = None,
    ) -> None:
        namespace, account_name = account
        token = kubectl("create", "token", account_name, "-n", namespace, f"--audience={AUDIENCE}")
        self._extensions = {"sni_hostname": name} if name else {}
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token.strip()}"},
            verify=ssl.create_default_context(cadata=authority),
            timeout=_CALL_SECONDS,
        )

    def get(self, path: str, **parameters: str) -> dict[str, Any]:
        """Return what is answered to a GET.

        Raises:
            httpx.HTTPStatusError: Another status than 2xx.
        """
        return self._json(
            self._client.get(path, params=parameters, extensions=dict(self._extensions))
        )

    def order(self, namespace: str, key: str, **order: Any) -> dict[str, Any]:
        """Order a Dispatch and return it; ``key`` is the Idempotency-Key.

        Raises:
            httpx.HTTPStatusError: It was not taken.
        """
        return self._json(
            self._client.post(
                f"/v1/namespaces/{namespace}/dispatches",
                json=order,
                headers={"Idempotency-Key": key},
                extensions=dict(self._extensions),
            )
        )

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _json(answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            problem = f"{answer.status_code} {answer.text}"
            raise httpx.HTTPStatusError(problem, request=answer.request, response=answer)
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Have an account ask once a second who it is, whatever it is answered."""
    done = threading.Event()

    def call() -> None:
        while not done.wait(1):
            with suppress(httpx.HTTPError):
                caller.get("/v1/me")

    thread = threading.Thread(target=call, name="caller")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        caller.close()
