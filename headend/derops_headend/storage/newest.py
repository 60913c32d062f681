"""Which assets had a name, and the newest sample of many of them at once."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import psycopg

from derops_headend.storage.quantities import QUANTITIES

MOST_UIDS = 100
"""The most assets of one name."""

NEWEST_WITHIN = (timedelta(hours=1), timedelta(days=2))
"""How far back the newest samples of many assets are looked for; for most the first is enough."""


class AssetKey(NamedTuple):
    """An asset. Agents of another name may have stored rows under the same uid: all three count."""

    namespace: str
    name: str
    uid: str


class AssetLife(NamedTuple):
    """An asset of a name; another one may have had the name before."""

    asset_id: int
    uid: str


class Newest(NamedTuple):
    """The newest sample of an asset that is not from the future."""

    at: datetime
    """The instant of the sample, by the agent's clock."""
    age_seconds: float
    received_at: datetime
    values: dict[str, float | None]
    """The values, by column of ``telemetry``."""


def find_lives(
    connection: psycopg.Connection,
    namespace: str,
    name: str,
    *,
    since: datetime | None = None,
    current_uid: str = "",
) -> list[AssetLife]:
    """Return the assets that had a name, the newest first; at most ``MOST_UIDS``.

    Args:
        connection: A connection of any role that reads.
        namespace: The namespace of the assets.
        name: The name of the assets.
        since: Leave out assets first heard of before; None = leave out none.
        current_uid: The uid of the asset that is never left out.
    """
    rows = connection.execute(
        "select asset_id, uid from asset where namespace = %s and name = %s and uid <> '' "
        "and (%s::timestamptz is null or first_seen_at >= %s or uid = %s) "
        "order by asset_id desc limit %s",
        (namespace, name, since, since, current_uid, MOST_UIDS),
    ).fetchall()
    return [AssetLife(*row) for row in rows]


_NEWEST = f"""
    select a.uid, t.ts, t.received_at, {", ".join(f"t.{each}" for each in QUANTITIES)}
    from unnest(
      string_to_array(%(namespaces)s, '/'), string_to_array(%(names)s, '/'),
      string_to_array(%(uids)s, '/')
    ) as wanted (namespace, name, uid)
    join asset a using (namespace, name, uid)
    cross join lateral (
      select * from telemetry t
      where t.asset_id = a.asset_id and t.ts > %(after)s and t.ts <= %(now)s
      order by t.ts desc limit 1
    ) t
"""  # noqa: S608  # our own names


def find_newest(
    connection: psycopg.Connection,
    keys: Sequence[AssetKey],
    now: datetime,
) -> dict[str, Newest]:
    """Return the newest sample of each asset by uid, of those that have one.

    Args:
        connection: With a transaction.
        keys: The assets, each once; none has a slash in it.
        now: What is later is from the future, and does not count yet.
    """
    found: dict[str, Newest] = {}
    for age in NEWEST_WITHIN:
        missing = [key for key in keys if key.uid not in found]
        if not missing:
            break
        # One text for each column: psycopg takes longer to write an array than PostgreSQL to look.
        names = {
            column: "/".join(getattr(key, column.removesuffix("s")) for key in missing)
            for column in ("namespaces", "names", "uids")
        }
        rows = connection.execute(
            _NEWEST.encode(), {**names, "after": now - age, "now": now}, prepare=False, binary=True
        ).fetchall()
        for uid, ts, received_at, *values in rows:
            found[uid] = Newest(
                at=ts,
                age_seconds=(now - ts).total_seconds(),
                received_at=received_at,
                values=dict(zip(QUANTITIES, values, strict=True)),
            )
    return found
