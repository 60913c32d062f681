"""What log lines say of assets and dispatches: the same names in every program."""

import re

from derops.wire.v1 import dispatch_pb2

MOST_REQUEST_ID_CHARACTERS = 64

_REQUEST_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MOST_REQUEST_ID_CHARACTERS}}}", re.ASCII)


def read_request_id(said: object) -> str:
    """Return the id of the request that ordered a dispatch; empty = nothing that can be one.

    It is a hint for people: whatever stands there, the dispatch goes its way.
    """
    return said if isinstance(said, str) and _REQUEST_ID.fullmatch(said) else ""


def asset_fields(namespace: str, name: str) -> dict[str, str]:
    """Return what a line about an asset says of it."""
    return {"namespace": namespace, "asset": name}


def dispatch_fields(
    *, namespace: str, asset: str, dispatch: str, uid: str, request_id: str
) -> dict[str, str]:
    """Return what a line about a dispatch says of it; what is not known is left out."""
    fields = {
        "namespace": namespace,
        "asset": asset,
        "dispatch": dispatch,
        "dispatch_uid": uid,
        "request_id": request_id,
    }
    return {name: value for name, value in fields.items() if value}


def wire_dispatch_fields(message: dispatch_pb2.Dispatch) -> dict[str, str]:
    """Return the same of a dispatch on the wire."""
    return dispatch_fields(
        namespace=message.namespace,
        asset=message.asset_name,
        dispatch=message.name,
        uid=message.uid,
        request_id=read_request_id(message.request_id),
    )
