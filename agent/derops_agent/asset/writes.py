"""What is stored before and after the device is written."""

from derops_agent.asset.journal import Journal
from derops_agent.asset.setpoints.writer import DeviceWriter
from derops_agent.execution.site import Site
from derops_agent.execution.windows import Executions


async def write_what_is_due(
    journal: Journal, writer: DeviceWriter, scope: Executions, site: Site
) -> None:
    """Bring the device to what ``scope`` wants: what was found first, the write, its outcome.

    A ledger that fails just then keeps the device from being written in this turn: the next one
    knows, and begins nothing.
    """
    failed_before = journal.failing
    prepared = await writer.prepare(scope, site)
    await journal.commit(prepared.changed)
    if prepared.write is None or (journal.failing and not failed_before):
        return
    await journal.commit(await prepared.write())
