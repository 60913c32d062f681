"""What is broken for all assets of an installation, as the operator tells it in a ConfigMap. Pure.

``data["status.json"]`` of the ConfigMap ``derops-installation`` in the operator's namespace::

    {"observedAt": "2026-01-31T12:00:00Z",
     "conditions": [{"type": "GatewaysConnected", "status": "True", "reason": "Holds",
                     "message": "...", "lastTransitionTime": "2026-01-31T11:00:00Z"}, ...]}

The conditions are those of ``LINKS``, in that order. ``observedAt`` is renewed like a lease: one
that is older than ``SILENT_AFTER_SECONDS`` says that the operator does not work. Fields are only
added.
"""

from enum import StrEnum

from derops.data_path import Link

CONFIG_MAP = "derops-installation"
KEY = "status.json"

RENEWED_EVERY_SECONDS = 60
SILENT_AFTER_SECONDS = 150

HOLDS = "Holds"
"""The reason of a condition that is True; where one is False it is a ``SharedFault``."""

NOT_TOLD = "NotTold"
"""The reason of one that is Unknown: no gateway has said it, or an older one does not say it.

It is ``SharedFault.GATEWAY_LOST`` where the operator hears of no gateway.
"""


class Condition(StrEnum):
    """What must hold for the data of any asset to flow."""

    GATEWAYS_CONNECTED = "GatewaysConnected"
    LOG_TAKES_DATA = "LogTakesData"
    WRITER_FOLLOWS = "WriterFollows"
    DATABASE_STORES = "DatabaseStores"


LINKS: dict[Condition, Link] = {
    Condition.GATEWAYS_CONNECTED: Link.GATEWAY,
    Condition.LOG_TAKES_DATA: Link.EVENT_LOG,
    Condition.WRITER_FOLLOWS: Link.WRITER,
    Condition.DATABASE_STORES: Link.DATABASE,
}
"""The link that each condition is about, in the order in which a sample passes them."""
