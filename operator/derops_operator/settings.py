"""Settings of the operator, from the environment alone."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from derops.ids import is_trust_domain
from derops.pem import IdentityFiles


class OperatorSettings(BaseSettings):
    """What the operator is told when it starts; every name has the prefix DEROPS_OPERATOR_."""

    model_config = SettingsConfigDict(env_prefix="DEROPS_OPERATOR_", frozen=True)

    gateways: Annotated[tuple[str, ...], NoDecode]
    """Control ports, host:port; a host may be a headless service with several addresses."""

    control_tls_directory: Path
    """Holds tls.crt, tls.key and ca.crt; read again every few seconds."""

    server_ca_file: Path
    """Certificate of the CA of gateways, which agents are told; read again every few seconds."""

    trust_domain: str
    era: int = Field(default=0, ge=0, lt=2**63)
    """Seconds since 1970 at which a person began it; a higher one wins over any earlier state."""

    gateway_server_name: str = "derops-gateway-control"
    agent_issuer: str = "derops-agent"
    cert_manager_user: str = "system:serviceaccount:cert-manager:cert-manager"
    """Who makes CertificateRequests; what others made is not signed."""

    namespace: str = "derops-system"
    """Where operator and gateway live, with their issuers."""

    ops_address: str = "0.0.0.0"  # noqa: S104 - the kubelet asks from outside the pod
    ops_port: int = Field(default=8080, ge=0, le=65535)
    asset_grace_seconds: int = Field(default=60, ge=0)
    resync_seconds: float = Field(default=600, gt=0)
    log_level: str = "INFO"

    @field_validator("gateways", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("gateways")
    @classmethod
    def _are_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets:
            raise ValueError("names no gateway; write host:port, separated by commas")
        for target in targets:
            host, _, port = target.rpartition(":")
            if not host or not port.isdecimal():
                raise ValueError(f"{target!r} is not host:port")
        return targets

    @field_validator("control_tls_directory")
    @classmethod
    def _holds_key_and_certificates(cls, directory: Path) -> Path:
        try:
            IdentityFiles.read(directory, directory / "ca.crt")
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from error
        return directory

    @field_validator("trust_domain")
    @classmethod
    def _is_trust_domain(cls, text: str) -> str:
        if not is_trust_domain(text):
            raise ValueError("is not a SPIFFE trust domain")
        return text

    @field_validator("log_level")
    @classmethod
    def _is_level(cls, text: str) -> str:
        if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return text.upper()
