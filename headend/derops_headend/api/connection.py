"""How the API finds the API server of Kubernetes, and speaks to it."""

from collections.abc import Mapping
from typing import Any
from urllib.request import getproxies

import aiohttp
from kubernetes.aio import client

from derops import kubeconfig

JSON = "application/json"


async def read_configuration() -> client.Configuration:
    """Read where the API server is; no call is made yet.

    Each client gets a configuration of its own: it may set the size of its pool there.

    Raises:
        SettingError: Nothing says where, or what does cannot be read.
    """
    configuration = await kubeconfig.read_configuration()
    # Else aiohttp looks for proxies and a .netrc before each request, in a thread each time.
    configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
    return configuration


async def send(
    api: client.ApiClient,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
    content_type: str = JSON,
    limits: aiohttp.ClientTimeout,
) -> aiohttp.ClientResponse:
    """Send one request; return the answer, whose body is still to be read.

    Raises:
        aiohttp.ClientError, OSError: There is none; TimeoutError: not in time.
    """
    method, url, headers, _, _ = await api.param_serialize(
        method,
        path,
        query_params=list((query or {}).items()),
        header_params={"Accept": JSON, "Content-Type": content_type},
        auth_settings=["BearerToken"],
    )
    sent = await api.call_api(method, url, headers, body, _request_timeout=limits)
    response: aiohttp.ClientResponse = sent.response
    return response
