"""Settings of the gateway, from the environment."""

import platform
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from derops.ids import is_trust_domain
from derops_headend.eventlog.engines import MAX_SHARDS, SQLITE, EventLogUrl


def _trust_domain(text: str) -> str:
    if not is_trust_domain(text):
        raise ValueError("is not the trust domain of a SPIFFE URI")
    return text


def _listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("is not host:port")
    return text


Listen = Annotated[str, AfterValidator(_listen)]


class GatewaySettings(BaseSettings):
    """``DEROPS_GATEWAY_*``."""

    model_config = SettingsConfigDict(env_prefix="DEROPS_GATEWAY_")

    agent_listen: Listen = "0.0.0.0:8443"
    agent_tls_directory: Path
    """tls.crt and tls.key, signed by the server CA that agents trust."""
    agent_ca_file: Path
    """The only CA whose clients the agent port hears."""
    control_listen: Listen = "0.0.0.0:8444"
    control_tls_directory: Path
    """tls.crt, tls.key, and ca.crt: the only CA whose clients the control port hears."""
    operator_certificate_file: Path
    """tls.crt of the operator's Secret, mounted without its key; read again when it changes."""
    data_directory: Path
    trust_domain: Annotated[str, AfterValidator(_trust_domain)]
    replica: str = Field(default_factory=platform.node)
    ops_address: str = "0.0.0.0"  # noqa: S104  # a probe comes from the node, not from loopback
    ops_port: int = Field(default=8081, ge=0, le=65535)
    heartbeat_seconds: int = Field(default=10, ge=1, le=3600)
    max_agent_connections: int = Field(default=12_000, ge=1, le=1_000_000)
    event_log: EventLogUrl = SQLITE
    log_shards: int = Field(default=1, ge=1, le=MAX_SHARDS)
    log_replicas: int = Field(default=1, ge=1, le=5)
    nats_credentials_file: Path | None = None
    nats_ca_file: Path | None = None
    log_max_bytes: int = Field(default=8 * 1024**3, ge=1024**2)
    log_when_full: Literal["refuse", "drop-oldest"] = "refuse"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
