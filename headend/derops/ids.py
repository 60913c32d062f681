"""Names: the identity of an asset as a SPIFFE URI, and uids that tell re-created objects apart."""

import re
from dataclasses import dataclass

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,253}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class AssetName:
    """Namespace and name of a DERAsset; the namespace is the tenant."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def uri(self, trust_domain: str) -> str:
        """Return the SPIFFE URI that the asset's certificates carry."""
        return f"spiffe://{trust_domain}/ns/{self.namespace}/derasset/{self.name}"


def parse_asset_uri(uri: str, trust_domain: str) -> AssetName | None:
    """Return the asset that ``uri`` names byte for byte, or None. Nothing is normalised."""
    pattern = rf"spiffe://{re.escape(trust_domain)}/ns/({_LABEL})/derasset/({_LABEL})"
    match = re.fullmatch(pattern, uri, flags=re.ASCII)
    return AssetName(*match.groups()) if match else None


def operator_uri(trust_domain: str) -> str:
    """Return the SPIFFE URI of the operator, the only one the control port admits."""
    return f"spiffe://{trust_domain}/operator"


def is_trust_domain(text: str) -> bool:
    """Tell whether ``text`` can stand as the trust domain of a SPIFFE URI."""
    return _TRUST_DOMAIN.fullmatch(text) is not None
