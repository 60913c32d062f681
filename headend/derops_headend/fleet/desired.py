"""Desired state: what the operator wants of the fleet, and what was written to whom.

Pure and in memory. The last complete snapshot with the changes since is the whole truth; a partial
one is never seen here, because it would revert a fleet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from derops.errors import DeropsError
from derops.ids import AssetName
from derops.lifecycle import Phase
from derops.wire.v1 import control_pb2, dispatch_pb2

DELTA_KINDS = frozenset({"asset", "dispatch", "asset_removed", "dispatch_removed", "unread"})
"""Kinds of OperatorMessage that change desired state."""


class BadSyncError(DeropsError):
    """The operator's stream breaks the protocol or is not the newest; ``reason`` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Revision:
    """Orders desired states over restarts of the operator."""

    era: int = 0
    """Seconds since 1970 at which a person began it; 0 = the first."""
    operator_start_ms: int
    version: int

    def __str__(self) -> str:
        return f"era {self.era} start {self.operator_start_ms} version {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A complete desired state."""

    revision: Revision
    assets: tuple[dispatch_pb2.Asset, ...]
    dispatches: tuple[dispatch_pb2.Dispatch, ...]
    unread: tuple[control_pb2.Unread, ...] = ()
    """Resources that exist and the operator cannot read; see ``DesiredState.completed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The first write of a dispatch to a live stream by this replica."""

    written_us: int
    ledger_id: str


NEVER = Written(written_us=0, ledger_id="")


@dataclass(slots=True, kw_only=True)
class Changes:
    """What differs after a step: assets by uid, and dispatches."""

    assets: set[str] = field(default_factory=set)
    removed_assets: set[str] = field(default_factory=set)
    dispatches: list[dispatch_pb2.Dispatch] = field(default_factory=list)
    begun: list[dispatch_pb2.Dispatch] = field(default_factory=list)
    """Of the dispatches, those that were not held before."""

    settled: list[dispatch_pb2.Dispatch] = field(default_factory=list)


class SnapshotBuilder:
    """Collects a snapshot until its end; thrown away if the stream ends earlier."""

    def __init__(self, operator_start_ms: int, era: int = 0) -> None:
        self._operator_start_ms, self._era = operator_start_ms, era
        self._assets: dict[str, dispatch_pb2.Asset] = {}
        self._dispatches: dict[str, dispatch_pb2.Dispatch] = {}
        self._unread: dict[str, control_pb2.Unread] = {}

    def add(self, message: control_pb2.OperatorMessage) -> None:
        """Take an asset, a dispatch, or the note that one exists and is unread.

        Raises:
            BadSyncError: The message is none of them.
        """
        kind = message.WhichOneof("kind")
        if kind == "asset":
            self._assets[message.asset.id.uid] = message.asset
        elif kind == "dispatch":
            self._dispatches[message.dispatch.uid] = message.dispatch
        elif kind == "unread":
            self._unread[message.unread.uid] = message.unread
        else:
            raise BadSyncError("BadSnapshot", f"{kind} between SnapshotBegin and SnapshotEnd")

    def finish(self, message: control_pb2.OperatorMessage) -> Snapshot:
        """Return the snapshot that ``message``, its SnapshotEnd, closes.

        Raises:
            BadSyncError: Its counts say that something is missing.
        """
        end = message.snapshot_end
        found = (len(self._assets), len(self._dispatches), len(self._unread))
        if found != (end.assets, end.dispatches, end.unread):
            raise BadSyncError(
                "SnapshotIncomplete",
                f"{found[0]} of {end.assets} assets, {found[1]} of {end.dispatches} dispatches, "
                f"{found[2]} of {end.unread} that are unread",
            )
        return Snapshot(
            revision=Revision(
                era=self._era, operator_start_ms=self._operator_start_ms, version=message.version
            ),
            assets=tuple(self._assets.values()),
            dispatches=tuple(self._dispatches.values()),
            unread=tuple(self._unread.values()),
        )


class DesiredState:
    """The state that is served; ``revision`` is None until there is a complete one."""

    def __init__(self) -> None:
        self.revision: Revision | None = None
        self._assets: dict[str, dispatch_pb2.Asset] = {}
        self._by_name: dict[AssetName, str] = {}
        self._dispatches: dict[str, dispatch_pb2.Dispatch] = {}
        self._of_asset: dict[str, dict[str, dispatch_pb2.Dispatch]] = {}
        self._unread: dict[str, control_pb2.Unread] = {}
        """Resources that are unread and not held."""

        self._missing_of: dict[AssetName, set[str]] = {}
        self._written: dict[str, Written] = {}
        self._noted: dict[str, Written] = {}
        """Writes that are on the disk and did not happen yet."""

    def assets(self) -> Sequence[dispatch_pb2.Asset]:
        """Return all assets."""
        return list(self._assets.values())

    def dispatches(self) -> Sequence[dispatch_pb2.Dispatch]:
        """Return all unsettled dispatches."""
        return list(self._dispatches.values())

    def asset(self, uid: str) -> dispatch_pb2.Asset | None:
        """Return an asset by uid."""
        return self._assets.get(uid)

    def asset_named(self, name: AssetName) -> dispatch_pb2.Asset | None:
        """Return an asset by name."""
        uid = self._by_name.get(name)
        return self._assets.get(uid) if uid else None

    def missing_of(self, name: AssetName) -> str:
        """Return the uid of something of this asset that is unread and not held; empty = none.

        Without it, a snapshot of this asset would have the agent give up what it runs.
        """
        uids = self._missing_of.get(name)
        return next(iter(uids), "") if uids else ""

    def dispatch(self, uid: str) -> dispatch_pb2.Dispatch | None:
        """Return an unsettled dispatch."""
        return self._dispatches.get(uid)

    def dispatches_of(self, asset_uid: str) -> Sequence[dispatch_pb2.Dispatch]:
        """Return the unsettled dispatches of an asset."""
        return list(self._of_asset.get(asset_uid, {}).values())

    def written(self, dispatch_uid: str) -> Written:
        """Return when this replica first wrote a dispatch to a stream."""
        return self._written.get(dispatch_uid, NEVER)

    def restore(self, snapshot: Snapshot, written: dict[str, Written]) -> None:
        """Begin with the state and the first writes that the disk holds."""
        self._written = dict(written)
        self.replace(snapshot)

    def completed(self, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot, with what is held of the resources that its sender cannot read."""
        unread = {each.uid for each in snapshot.unread}
        unread -= {each.id.uid for each in snapshot.assets}
        unread -= {each.uid for each in snapshot.dispatches}
        kept_assets = [each for uid, each in self._assets.items() if uid in unread]
        kept_dispatches = [each for uid, each in self._dispatches.items() if uid in unread]
        return replace(
            snapshot,
            assets=(*snapshot.assets, *kept_assets),
            dispatches=(*snapshot.dispatches, *kept_dispatches),
        )

    def replace(self, snapshot: Snapshot) -> Changes:
        """Replace the whole state by a complete snapshot; see ``completed``."""
        old_assets, old_dispatches = self._assets, self._dispatches
        # Agents are to store a new era at once, not with their next change.
        begins = self.revision is not None and self.revision.era != snapshot.revision.era
        self._put_all(snapshot)
        return Changes(
            assets={
                uid for uid, asset in self._assets.items() if begins or old_assets.get(uid) != asset
            },
            removed_assets=old_assets.keys() - self._assets.keys(),
            dispatches=[d for uid, d in self._dispatches.items() if old_dispatches.get(uid) != d],
            begun=_missing(self._dispatches.values(), old_dispatches),
            settled=_missing(old_dispatches.values(), self._dispatches),
        )

    def _put_all(self, snapshot: Snapshot) -> None:
        self.revision = snapshot.revision
        self._assets, self._by_name, self._dispatches, self._of_asset = {}, {}, {}, {}
        for asset in snapshot.assets:
            self._put_asset(asset)
        for dispatch in snapshot.dispatches:
            self._put_dispatch(dispatch)
        self._unread, self._missing_of = {}, {}
        for unread in snapshot.unread:
            self._put_unread(unread)
        self._written = {
            uid: write for uid, write in self._written.items() if uid in self._dispatches
        }
        self._noted = {uid: write for uid, write in self._noted.items() if uid in self._dispatches}

    def apply(self, message: control_pb2.OperatorMessage) -> Changes:
        """Take one change; see ``DELTA_KINDS``."""
        kind, changes = message.WhichOneof("kind"), Changes()
        if kind == "asset":
            self._put_asset(message.asset)
            changes.assets.add(message.asset.id.uid)
        elif kind == "dispatch":
            if message.dispatch.uid not in self._dispatches:
                changes.begun.append(message.dispatch)
            self._put_dispatch(message.dispatch)
            changes.dispatches.append(message.dispatch)
        elif kind == "asset_removed":
            self._read(message.asset_removed)
            self._remove_asset(message.asset_removed)
            changes.removed_assets.add(message.asset_removed)
        elif kind == "dispatch_removed":
            self._read(message.dispatch_removed)
            changes.settled += self._remove_dispatch(message.dispatch_removed)
        elif kind == "unread":
            self._put_unread(message.unread)
        if self.revision is not None:
            version = max(self.revision.version, message.version)
            self.revision = replace(self.revision, version=version)
        return changes

    def may_be_written(self, dispatch_uid: str) -> bool:
        """Tell whether a dispatch is to go to a stream.

        It is not if it was cancelled before anybody wrote it: the operator may already have told
        the requester that nothing was delivered.
        """
        dispatch = self._dispatches.get(dispatch_uid)
        return dispatch is not None and self._is_wanted(dispatch)

    def may_be_first_written(self, dispatch: dispatch_pb2.Dispatch) -> bool:
        """Tell whether a dispatch that is about to be taken would be written for the first time."""
        return dispatch.uid not in self._written and self._is_wanted(dispatch)

    def note_ahead(self, dispatch_uid: str, write: Written) -> None:
        """Note that a first write which may follow is on the disk already.

        It counts only once it is marked: until then the dispatch was never written.
        """
        if dispatch_uid not in self._written:
            self._noted[dispatch_uid] = write

    def mark_written(self, dispatch_uid: str, now_us: int, ledger_id: str) -> Written | None:
        """Note a write before it happens; return it if the disk does not have it yet.

        Memory has it at once: a cancel that arrives while the note goes to the disk must not be
        answered with "never written". The first ledger stays: what another says proves nothing
        about it.
        """
        if dispatch_uid in self._written:
            return None
        noted = self._noted.pop(dispatch_uid, None)
        if noted is not None and noted.ledger_id == ledger_id:
            self._written[dispatch_uid] = noted
            return None
        self._written[dispatch_uid] = Written(written_us=now_us, ledger_id=ledger_id)
        return self._written[dispatch_uid]

    def as_written(self, dispatch: dispatch_pb2.Dispatch, ledger_id: str) -> dispatch_pb2.Dispatch:
        """Return a dispatch as it goes to a ledger: with another ledger that had it first."""
        first = self.written(dispatch.uid).ledger_id
        if first in {"", ledger_id}:
            return dispatch
        marked = dispatch_pb2.Dispatch()
        marked.CopyFrom(dispatch)
        marked.other_ledger_id = first
        return marked

    def _is_wanted(self, dispatch: dispatch_pb2.Dispatch) -> bool:
        unheard = dispatch.known_phase in {"", Phase.SUBMITTED}
        return not (dispatch.cancelled and unheard and self.written(dispatch.uid) is NEVER)

    def _put_unread(self, unread: control_pb2.Unread) -> None:
        if unread.uid in self._assets or unread.uid in self._dispatches:
            return
        self._unread[unread.uid] = unread
        name = AssetName(unread.namespace, unread.asset_name)
        self._missing_of.setdefault(name, set()).add(unread.uid)

    def _read(self, uid: str) -> None:
        """Forget that something is missing: it is here now, or gone."""
        unread = self._unread.pop(uid, None)
        if unread is None:
            return
        name = AssetName(unread.namespace, unread.asset_name)
        self._missing_of[name].discard(uid)
        if not self._missing_of[name]:
            del self._missing_of[name]

    def _put_asset(self, asset: dispatch_pb2.Asset) -> None:
        self._read(asset.id.uid)
        self._assets[asset.id.uid] = asset
        self._by_name[AssetName(asset.id.namespace, asset.id.name)] = asset.id.uid

    def _remove_asset(self, uid: str) -> None:
        asset = self._assets.pop(uid, None)
        if asset is None:
            return
        name = AssetName(asset.id.namespace, asset.id.name)
        if self._by_name.get(name) == uid:  # a re-created asset may have the name already
            del self._by_name[name]

    def _put_dispatch(self, dispatch: dispatch_pb2.Dispatch) -> None:
        self._read(dispatch.uid)
        self._dispatches[dispatch.uid] = dispatch
        self._of_asset.setdefault(dispatch.asset_uid, {})[dispatch.uid] = dispatch

    def _remove_dispatch(self, uid: str) -> list[dispatch_pb2.Dispatch]:
        dispatch = self._dispatches.pop(uid, None)
        self._written.pop(uid, None)
        self._noted.pop(uid, None)
        if dispatch is None:
            return []
        of_asset = self._of_asset[dispatch.asset_uid]
        del of_asset[uid]
        if not of_asset:
            del self._of_asset[dispatch.asset_uid]
        return [dispatch]


def _missing(
    old: Iterable[dispatch_pb2.Dispatch], new: dict[str, dispatch_pb2.Dispatch]
) -> list[dispatch_pb2.Dispatch]:
    return [dispatch for dispatch in old if dispatch.uid not in new]
