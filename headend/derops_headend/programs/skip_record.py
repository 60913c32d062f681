"""``derops-headend skip-record``: moves a writer past the damaged record that stops it."""

import sqlite3
import sys

import psycopg

from derops.errors import DeropsError, LogDamagedError, SchemaTooNewError, SettingError
from derops.settings import load_settings, refuse_to_start
from derops_headend.eventlog.ports import LogReader
from derops_headend.programs.writer import WriterSettings, check_settings, open_log
from derops_headend.storage.explanations import explain
from derops_headend.storage.schema import migrate

_CONNECT_SECONDS = 5
_START = """
    insert into log_offset (log_id, shard, committed_offset) values (%s, %s, 0)
    on conflict do nothing
"""
_LOCK = "select committed_offset from log_offset where log_id = %s and shard = %s for update"
_KEEP = """
    insert into quarantine (
      log_id, log_offset, entry_index, kind, namespace, name, uid, reason, detail, body
    ) values (%s, %s, -1, 0, '', '', '', 'Damaged', %s, %s) on conflict do nothing
"""
_ADVANCE = """
    update log_offset set committed_offset = %s, updated_at = now()
    where log_id = %s and shard = %s
"""


class SkipRefusedError(DeropsError):
    """The record is not the one that stops a writer."""


def skip(log: LogReader, connection: psycopg.Connection, shard: int, record: int) -> int:
    """Move the writer past one damaged record, keep its bytes, and return how many they are.

    Args:
        log: The shard.
        connection: To the migrated database.
        shard: Its number.
        record: Its offset; just what is committed + 1.

    Raises:
        SkipRefusedError: The record is not damaged, or no writer stands at it.
    """
    try:
        log.read(record - 1, 1)
    except LogDamagedError as error:
        if error.offset != record:
            raise SkipRefusedError(f"record {error.offset} is damaged, not {record}") from error
        why = str(error)
    else:
        raise SkipRefusedError(f"record {record} is not damaged: nothing was done")
    body = log.raw(record)
    place = (log.log_id, shard)
    with connection.transaction():
        connection.execute(_START, place)
        row = connection.execute(_LOCK, place).fetchone()
        committed = row[0] if row else 0
        if committed != record - 1:
            raise SkipRefusedError(
                f"the writer has come to record {committed}, it does not stand at {record}"
            )
        connection.execute(_KEEP, (log.log_id, record, why, body))
        connection.execute(_ADVANCE, (record, *place))
    return len(body)


def main(record: int, shard: int) -> None:
    """Skip a record of the log that the writer's settings name; exit code 1 where that fails."""
    settings = load_settings(WriterSettings)
    try:
        check_settings(settings)
        log = open_log(settings, shard)
        try:
            url = settings.database_url.get_secret_value()
            with psycopg.connect(
                url, autocommit=True, connect_timeout=_CONNECT_SECONDS
            ) as connection:
                migrate(connection)
                kept = skip(log, connection, shard, record)
        finally:
            log.close()
    except (SettingError, SchemaTooNewError) as error:
        refuse_to_start(error)
    except (DeropsError, psycopg.Error, sqlite3.Error) as error:
        why = explain(error) if isinstance(error, psycopg.Error) else str(error).strip()
        sys.stderr.write(f"not skipped: {why}\n")
        sys.exit(1)
    sys.stdout.write(f"record {record} skipped; its {kept} bytes are in quarantine (Damaged)\n")
