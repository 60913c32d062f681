"""Settings of the API, from the environment."""

import ipaddress
import platform
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from derops.errors import SettingError
from derops.settings import GivenPath, HostPort, Port, ProgramSettings, split_words
from derops_headend.api.audit.file import SEGMENT_BYTES
from derops_headend.storage.url import DatabaseUrl, check_url

LEAST_AUDIT_BYTES = 4 * SEGMENT_BYTES
"""The newest segment stays even if all its records are in the database; reads need room beside it.
"""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(value: object) -> object:
    words = split_words(value)
    if not isinstance(words, tuple):
        return words
    try:
        return tuple(ipaddress.ip_network(word) for word in words)
    except ValueError as error:
        raise ValueError(f"is no list of CIDRs: {error}") from error


class ApiSettings(ProgramSettings):
    """``DEROPS_API_*``."""

    model_config = SettingsConfigDict(env_prefix="DEROPS_API_")

    listen: HostPort = "0.0.0.0:8443"
    tls_directory: GivenPath | None = None
    """tls.crt and tls.key; read again when they change. None = plaintext."""
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)] = ()
    """The proxies whose X-Forwarded-For counts."""
    database_url: DatabaseUrl
    data_directory: GivenPath
    """The directory of the audit's file."""
    audit_max_bytes: int = Field(default=1024**3, ge=LEAST_AUDIT_BYTES)
    audience: str = Field(default="derops-api", pattern=r"^[\x21-\x7e]{1,256}$")
    """The audience for which a Kubernetes token must have been made."""
    static_tokens_directory: GivenPath | None = None
    replica: str = Field(
        default_factory=platform.node, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]{0,252}$"
    )
    """Names the chain of this process's records."""
    ops_port: Port = 8083


def check_settings(settings: ApiSettings) -> None:
    """Check settings that depend on each other.

    Raises:
        SettingError: Tokens would travel in plaintext, or the URL is not one of a database.
    """
    check_url(settings.database_url, "DEROPS_API_DATABASE_URL")
    host = settings.listen.rpartition(":")[0].strip("[]")
    if settings.tls_directory or settings.trusted_proxies or _is_loopback(host):
        return
    problem = (
        f"is required: tokens would go in plaintext to {host}; give a directory with tls.crt and "
        "tls.key, or listen on loopback, or name in DEROPS_API_TRUSTED_PROXIES who ends TLS"
    )
    raise SettingError("DEROPS_API_TLS_DIRECTORY", "environment", problem)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
