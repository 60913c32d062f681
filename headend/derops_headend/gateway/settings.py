"""Settings of the gateway, from the environment."""

import platform
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from derops.settings import GivenPath, HostPort, Port, ProgramSettings, TrustDomain
from derops_headend.eventlog.engines import MAX_SHARDS, SQLITE, EventLogUrl


class GatewaySettings(ProgramSettings):
    """``DEROPS_GATEWAY_*``."""

    model_config = SettingsConfigDict(env_prefix="DEROPS_GATEWAY_")

    agent_listen: HostPort = "0.0.0.0:8443"
    agent_tls_directory: GivenPath
    """tls.crt and tls.key, signed by the server CA that agents trust."""
    agent_ca_file: GivenPath
    """The only CA whose clients the agent port hears."""
    control_listen: HostPort = "0.0.0.0:8444"
    control_tls_directory: GivenPath
    """tls.crt, tls.key, and ca.crt: the only CA whose clients the control port hears."""
    operator_certificate_file: GivenPath
    """tls.crt of the operator's Secret, mounted without its key; read again when it changes."""
    data_directory: GivenPath
    trust_domain: TrustDomain
    replica: str = Field(default_factory=platform.node, min_length=1)
    ops_port: Port = 8081
    heartbeat_seconds: int = Field(default=10, ge=1, le=3600)
    max_agent_connections: int = Field(default=12_000, ge=1, le=1_000_000)
    event_log: EventLogUrl = SQLITE
    log_shards: int = Field(default=1, ge=1, le=MAX_SHARDS)
    log_replicas: int = Field(default=1, ge=1, le=5)
    nats_credentials_file: GivenPath | None = None
    nats_ca_file: GivenPath | None = None
    log_max_bytes: int = Field(default=8 * 1024**3, ge=1024**2)
    log_when_full: Literal["refuse", "drop-oldest"] = "refuse"
