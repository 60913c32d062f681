"""``derops-headend database``: what an administrator of the database has to provide."""

import sys

import psycopg

from derops.errors import SettingError
from derops.settings import load_settings, refuse_to_start
from derops_headend.programs.writer import WriterSettings
from derops_headend.storage.explanations import explain
from derops_headend.storage.roles import find_missing, find_superfluous, roles_sql
from derops_headend.storage.url import check_url

_CONNECT_SECONDS = 5


def main(*, check: bool) -> None:
    """Print the SQL that makes the roles, or say what is missing; exit code 1 where anything is."""
    if not check:
        sys.stdout.write(roles_sql().decode())
        return
    settings = load_settings(WriterSettings)
    try:
        check_url(settings.database_url, "DEROPS_WRITER_DATABASE_URL")
    except SettingError as error:
        refuse_to_start(error)
    sys.exit(_check(settings.database_url.get_secret_value()))


def _check(url: str) -> int:
    try:
        with psycopg.connect(
            url, autocommit=True, connect_timeout=_CONNECT_SECONDS, client_encoding="utf8"
        ) as connection:
            missing, superfluous = find_missing(connection), find_superfluous(connection)
            info = connection.info
            where = f"{info.user} in database {info.dbname}"
    except psycopg.Error as error:
        missing, superfluous, where = [explain(error)], [], ""
    for line in missing:
        sys.stdout.write(f"missing: {line}\n")
    for line in superfluous:
        sys.stdout.write(f"note: {line}\n")
    if missing:
        return 1
    sys.stdout.write(f"{where} has all that the writer needs\n")
    return 0
