"""Settings of the operator, from the environment alone."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from derops.pem import IdentityFiles
from derops.settings import (
    GivenPath,
    HostPort,
    Port,
    ProgramSettings,
    ResourceName,
    TrustDomain,
    split_words,
)


def _some(targets: tuple[str, ...]) -> tuple[str, ...]:
    if not targets:
        raise ValueError("names no gateway; write host:port, separated by commas")
    return targets


def _holds_key_and_certificates(directory: Path) -> Path:
    try:
        IdentityFiles.read(directory, directory / "ca.crt")
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from error
    return directory


class OperatorSettings(ProgramSettings):
    """What the operator is told when it starts; every name has the prefix DEROPS_OPERATOR_."""

    model_config = SettingsConfigDict(env_prefix="DEROPS_OPERATOR_")

    gateways: Annotated[
        tuple[HostPort, ...], NoDecode, BeforeValidator(split_words), AfterValidator(_some)
    ]
    """Control ports, host:port; a host may be a headless service with several addresses."""

    control_tls_directory: Annotated[GivenPath, AfterValidator(_holds_key_and_certificates)]
    """Holds tls.crt, tls.key and ca.crt; read again every few seconds."""

    server_ca_file: GivenPath
    """Certificate of the CA of gateways, which agents are told; read again every few seconds."""

    trust_domain: TrustDomain
    era: int = Field(default=0, ge=0, lt=2**63)
    """Seconds since 1970 at which a person began it; a higher one wins over any earlier state."""

    gateway_server_name: str = Field(default="derops-gateway-control", min_length=1)
    agent_issuer: ResourceName = "derops-agent"
    cert_manager_user: str = Field(
        default="system:serviceaccount:cert-manager:cert-manager", min_length=1
    )
    """Who makes CertificateRequests; what others made is not signed."""

    namespace: ResourceName = "derops-system"
    """Where operator and gateway live, with their issuers."""

    ops_port: Port = 8080
    asset_grace_seconds: int = Field(default=60, ge=0)
    resync_seconds: float = Field(default=600, gt=0)
