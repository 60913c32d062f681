"""The REST API, asked about one asset: what the database knows of it.

The address is the caller's, else that of the ConfigMap ``derops-api-client``, else a port that
kubectl forwards while it is asked.
"""

import re
import selectors
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from derops_cli.collecting import Cluster, side_by_side
from derops_cli.credentials import Login
from derops_cli.deadline import Deadline
from derops_cli.errors import UsageError
from derops_cli.evidence import Missing, Right, Stored
from derops_cli.reading import read_stored
from derops_cli.words import clean

CLIENT, AUTHORITY = "derops-api-client", "derops-server-ca"
"""ConfigMaps: how the API is reached, and the authority of its certificate."""

_SERVICE = "derops-api"
_ROWS = "20"
_FORWARDING = re.compile(r"^Forwarding from 127\.0\.0\.1:(\d+) ->")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the API is."""

    url: str
    authority: str
    """PEM; empty = only the authorities of this machine."""

    name: str = ""
    """What the certificate must be for; empty = the host of the URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the caller wants to reach the API."""

    login: Login
    url: str | None = None
    ca_file: str | None = None

    def check(self) -> None:
        """Check what was given.

        Raises:
            UsageError: It is of no use.
        """
        self.login.check()
        if self.url is not None and not re.match(r"https://[^/@\s]+/?$", self.url):
            raise UsageError(f"--api-url is {clean(self.url, 100)!r}: it is https://HOST[:PORT]")
        if self.ca_file is not None:
            try:
                trust = Path(self.ca_file).read_text(encoding="ascii")
                ssl.create_default_context(cadata=trust)
            except (OSError, ValueError) as error:
                problem = "no certificate in PEM" if isinstance(error, ValueError) else error
                raise UsageError(f"--api-ca: {self.ca_file}: {problem}") from error


def ask_about(
    cluster: Cluster, access: Access, namespace: str, name: str, deadline: Deadline
) -> Stored | Missing:
    """Return what the database knows of an asset."""
    token, client, authority = side_by_side(
        lambda: access.login.have_token(cluster.kubectl, deadline),
        lambda: _config_map(cluster, CLIENT),
        lambda: _config_map(cluster, AUTHORITY),
    )
    if isinstance(token, Missing):
        return token
    known = "" if isinstance(client, Missing) else str(client.get("url", ""))
    pem = _authority(access, client, authority)
    if access.url or known:
        return _ask(Address(access.url or known, pem), token, namespace, name, deadline)
    with forwarded(cluster, deadline) as port:
        if isinstance(port, Missing):
            return port
        address = Address(f"https://127.0.0.1:{port}", pem, _SERVICE)
        return _ask(address, token, namespace, name, deadline)


@contextmanager
def forwarded(cluster: Cluster, deadline: Deadline) -> Iterator[int | Missing]:
    """Have kubectl forward a free port of this machine to the API, for as long as this lasts."""
    arguments = ("-n", cluster.system, f"service/{_SERVICE}", ":https", "--address=127.0.0.1")
    process = cluster.kubectl.start("port-forward", *arguments)
    try:
        yield _read_port(process, deadline)
    finally:
        process.kill()
        process.communicate()


def _read_port(process: subprocess.Popen[str], deadline: Deadline) -> int | Missing:
    what = f"port-forward to service {_SERVICE}"
    output = process.stdout
    if output is None:
        return Missing(what, "kubectl says nothing")
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        if not selector.select(deadline.left(0.7)):
            return Missing(what, "kubectl did not forward a port in time")
    said = output.readline()
    found = _FORWARDING.match(said)
    if found:
        return int(found[1])
    why = clean(said.removeprefix("error: ").strip()) or "kubectl ended without a word"
    return Missing(what, why)


def _config_map(cluster: Cluster, name: str) -> dict[str, Any] | Missing:
    path = f"/api/v1/namespaces/{cluster.system}/configmaps/{name}"
    found = cluster.kubectl.get(path, f"ConfigMap {name}")
    if isinstance(found, Missing):
        return found
    data = found.get("data")
    return data if isinstance(data, dict) else {}


def _authority(
    access: Access, client: dict[str, Any] | Missing, authority: dict[str, Any] | Missing
) -> str:
    if access.ca_file is not None:
        return Path(access.ca_file).read_text(encoding="ascii")
    for each in (client, authority):
        if not isinstance(each, Missing) and each.get("ca.crt"):
            return str(each["ca.crt"])
    return ""


def _ask(
    address: Address, token: str, namespace: str, name: str, deadline: Deadline
) -> Stored | Missing:
    what = f"API at {address.url}"
    try:
        trust = ssl.create_default_context()
        if address.authority:
            trust.load_verify_locations(cadata=address.authority)
    except ValueError:
        return Missing(what, "the authority of its certificate cannot be read")
    extensions = {"sni_hostname": address.name} if address.name else {}
    path = f"/v1/namespaces/{namespace}/assets/{name}"
    with httpx.Client(
        base_url=address.url,
        headers={"Authorization": f"Bearer {token}"},
        verify=trust,
        timeout=deadline.left(),
        trust_env=False,
    ) as client:

        def ask(path: str, **parameters: str) -> Callable[[], httpx.Response]:
            return lambda: client.get(path, params=parameters, extensions=dict(extensions))

        try:
            asset, connections, gaps, rights = side_by_side(
                ask(path),
                ask(f"{path}/connections", limit=_ROWS),
                ask(f"{path}/gaps", limit=_ROWS),
                ask("/v1/me/rights", namespace=namespace),
            )
        except httpx.HTTPError as error:
            return Missing(what, f"it does not answer: {clean(error) or type(error).__name__}")
    return _understand(what, namespace, asset, connections, gaps, rights)


def _understand(
    what: str,
    namespace: str,
    asset: httpx.Response,
    connections: httpx.Response,
    gaps: httpx.Response,
    rights: httpx.Response,
) -> Stored | Missing:
    if asset.status_code == httpx.codes.UNAUTHORIZED:
        return Missing(what, f"it does not take the token: {_problem(asset)}")
    right = Right("get", "derassets.derops.io/telemetry", namespace)
    try:
        allowed = _allowed(rights)
        if asset.is_error and ("get", "derassets") not in allowed:
            right = Right("get", "derassets.derops.io", namespace)
            return Missing(what, f"its caller may not {right}", right)
        if asset.is_error:
            return Missing(what, _problem(asset))
        if ("get", "derassets/telemetry") not in allowed:
            return Missing(what, f"its caller may not {right}", right)
        listed = [each.json() if each.is_success else {} for each in (connections, gaps)]
        return read_stored(asset.json(), *listed)
    except (ValueError, KeyError, TypeError):
        return Missing(what, "its answer is not that of the API of derops")


def _allowed(rights: httpx.Response) -> set[tuple[str, str]]:
    if rights.is_error:
        return set()
    return {(each["verb"], each["resource"]) for each in rights.json()["rights"] if each["allowed"]}


def _problem(answer: httpx.Response) -> str:
    try:
        said = answer.json()
        errors = ", ".join(str(each.get("code", "")) for each in said.get("errors") or ())
        words = f"{answer.status_code} {said.get('title', '')}: {said.get('detail', '')}"
        return clean(words + (f" ({errors})" if errors else ""))
    except (ValueError, AttributeError):
        return f"{answer.status_code}"
