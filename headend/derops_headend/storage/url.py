"""The setting of all programs that says where the database is."""

from typing import Annotated

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import BeforeValidator, SecretStr

from derops.errors import SettingError


def _without_line_end(text: object) -> object:
    """Return a URL without the line end that a Secret made from a file has."""
    return text.strip() if isinstance(text, str) else text


DatabaseUrl = Annotated[SecretStr, BeforeValidator(_without_line_end)]


def check_url(url: SecretStr, setting: str) -> None:
    """Check that a URL is one.

    Args:
        url: The URL of a database.
        setting: Name of the variable that it comes from.

    Raises:
        SettingError: It is not.
    """
    try:
        has_any = conninfo_to_dict(url.get_secret_value())
    except psycopg.Error:
        has_any = {}
    if not has_any:
        problem = "is not a connection URL of PostgreSQL"  # the text may hold a password
        raise SettingError(setting, "environment", problem)
