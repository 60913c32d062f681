"""How this program finds the API server, and speaks to it."""

import os
from collections.abc import Mapping
from typing import Any
from urllib.request import getproxies

import aiohttp
import yaml
from kubernetes.aio import client, config

from derops.errors import SettingError

JSON = "application/json"

_UNUSABLE = (
    config.ConfigException,
    OSError,
    yaml.YAMLError,
    # What the client comes across in a file that is YAML and no kubeconfig.
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


async def read_configuration() -> client.Configuration:
    """Read KUBECONFIG or the pod's service account; no call is made yet.

    Each client gets a configuration of its own: it may set the size of its pool there.

    Raises:
        SettingError: There is neither, or it cannot be read.
    """
    configuration = client.Configuration()
    # Else aiohttp looks for proxies and a .netrc before each request, in a thread each time.
    configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
    file = os.environ.get("KUBECONFIG")
    if file and not any(map(os.path.isfile, file.split(os.pathsep))):
        raise SettingError("KUBECONFIG", "environment", f"there is no file {file}")
    try:
        if file:
            await config.load_kube_config(file, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except _UNUSABLE as error:
        why = " ".join(str(error).split())
        problem = (
            f"{file} is of no use: {why}"
            if file
            else f"is not set, and this is no pod with a service account: {why}"
        )
        raise SettingError("KUBECONFIG", "environment", problem) from error
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
