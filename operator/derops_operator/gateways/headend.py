"""What gateway replicas say of the links behind all agents: bounded, and of a closed set."""

from collections.abc import Mapping
from dataclasses import dataclass

from derops.data_path import LINK_OF, Link, SharedFault
from derops.wire.v1 import control_pb2

MAX_LINKS = 8
"""Of one message; what is beyond is not looked at."""

MAX_MESSAGE = 500
"""Characters that are kept of what a replica says of one link."""

JUDGED = (Link.EVENT_LOG, Link.WRITER, Link.DATABASE)
"""What a replica can judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldLink:
    """How a link stands, as one replica says.

    Attributes:
        fault: Why it is broken; None = it holds.
        message: The evidence, in words.
    """

    fault: SharedFault | None
    message: str


def read_links(state: control_pb2.HeadendState) -> dict[Link, ToldLink]:
    """Return what a replica says, by link; a link or a reason that is none is passed over."""
    found: dict[Link, ToldLink] = {}
    for each in state.links[:MAX_LINKS]:
        link = next((known for known in JUDGED if known == each.link), None)
        if link is not None and link not in found and (told := _read_link(link, each)):
            found[link] = told
    return found


def _read_link(link: Link, state: control_pb2.LinkState) -> ToldLink | None:
    fault = next((known for known in SharedFault if known == state.reason), None)
    is_its_own = LINK_OF[fault] is link if fault is not None else not state.reason
    return ToldLink(fault=fault, message=clean(state.message)) if is_its_own else None


def clean(text: str) -> str:
    """Return a text cut, on one line, and without what a terminal would act on."""
    words = " ".join(text[: 2 * MAX_MESSAGE].split())
    return "".join(each for each in words if each.isprintable())[:MAX_MESSAGE]


class HeadendViews:
    """What each replica said last. Not for several threads."""

    def __init__(self) -> None:
        self._told: dict[str, dict[Link, ToldLink]] = {}

    def note(self, replica: str, state: control_pb2.HeadendState) -> None:
        """Keep what a replica says, in the place of what it said before."""
        self._told[replica] = read_links(state)

    def forget_replica(self, replica: str) -> None:
        """Forget what a replica told."""
        self._told.pop(replica, None)

    def of(self, replica: str) -> Mapping[Link, ToldLink]:
        """Return what a replica said, by link."""
        return self._told.get(replica, {})
