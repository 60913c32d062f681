"""Where a unit on a bus is, and whether two assets mean the same one. Needs no Modbus library."""

import socket
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

MOST_SECONDS = 5
"""The longest that one request may wait for its answer."""


class UnitOptions(BaseModel):
    """Where a unit is."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 502
    unit_id: Annotated[int, Field(ge=0, le=255)] = 1
    timeout_seconds: Annotated[float, Field(gt=0, le=MOST_SECONDS)] = 1.0


def same_device(one: UnitOptions, other: UnitOptions) -> bool:
    """Tell whether two assets name one unit, even by different names of its host.

    Names are resolved as well as it goes now: a name that does not resolve is compared as written.
    """
    if (one.port, one.unit_id) != (other.port, other.unit_id):
        return False
    return one.host == other.host or bool(_addresses(one.host) & _addresses(other.host))


def _addresses(host: str) -> set[str]:
    try:
        return {str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return {host}
