"""Compare all accounts of a dispatch that ended: status, device, telemetry, database."""

from collections.abc import Sequence

from tests.cluster.site import Site
from tests.cluster.truth import Evidence, untruths
from tests.e2e.acting import TERMINAL
from tests.kills.judging import Stay
from tests.waiting import eventually

STORED_SECONDS = 60
"""Within this time after the end all samples and the history must be in the database."""


def assert_true(
    site: Site,
    dispatch: str,
    *,
    asset: str = "battery",
    lives_lost: int = 0,
    silences: Sequence[Stay] = (),
) -> None:
    """Fail unless every account of a dispatch says the same, once all of it is stored.

    Args:
        site: Where it is.
        dispatch: Its name; it is in a terminal phase.
        asset: Whose device it was for.
        lives_lost: How often the agent was ended while the device held the value.
        silences: When no agent ran.
    """
    last: list[str] = ["not looked"]

    def look() -> bool:
        last[:] = untruths(gather(site, dispatch, asset, lives_lost, silences))
        return not last

    try:
        eventually(look, f"{dispatch} to be true in all accounts", STORED_SECONDS)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *last])) from None


def gather(
    site: Site, dispatch: str, asset: str, lives_lost: int, silences: Sequence[Stay]
) -> Evidence:
    """Ask everybody."""
    resource = site.get("dispatch", dispatch)
    assert resource["status"]["phase"] in TERMINAL
    return Evidence(
        dispatch=resource,
        account=site.device_log(asset),
        samples=site.samples(asset),
        history=site.history(dispatch),
        lives_lost=lives_lost,
        silences=silences,
    )
