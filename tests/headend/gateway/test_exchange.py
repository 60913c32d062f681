"""What no stream can be made to do on purpose: word that comes when its stream is over already."""

from pathlib import Path

import pytest
from tests.lifecycle.links import Gateway

from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_headend.fleet.desired import BadSyncError, SnapshotBuilder


class Outlet:
    """An operator's stream that only remembers why it was ended."""

    ended = ""

    def tell(self, message: control_pb2.ReplicaMessage) -> None:
        """Drop it."""

    def has_room_for_stray(self, report: control_pb2.AgentReport) -> bool:
        return True

    def end(self, reason: str, message: str) -> None:
        self.ended = reason


async def test_what_a_superseded_operator_still_says_is_not_taken(tmp_path: Path) -> None:
    gateway = Gateway(0, tmp_path, lambda: 1)
    await gateway.start()
    exchange = gateway.exchange
    assert exchange is not None
    old, new = Outlet(), Outlet()
    exchange.operator.attach(old)
    exchange.operator.attach(new)
    asset = dispatch_pb2.Asset(id=dispatch_pb2.AssetId(uid="uid-a", namespace="ns", name="a"))
    late = control_pb2.OperatorMessage(version=7, asset=asset)
    end = control_pb2.OperatorMessage(version=7, snapshot_end=control_pb2.SnapshotEnd())

    with pytest.raises(BadSyncError, match="Superseded"):
        await exchange.apply(old, [late])
    with pytest.raises(BadSyncError, match="Superseded"):
        await exchange.replace(old, SnapshotBuilder(9).finish(end))

    assert (old.ended, new.ended) == ("Superseded", "")
    assert exchange.desired.revision is None
    assert exchange.desired.assets() == []
    await gateway.kill()
