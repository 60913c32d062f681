"""Ending a connection that another thread waits on."""

import os
import socket
from contextlib import suppress

import psycopg


def cut(connection: psycopg.Connection) -> None:
    """End a connection below psycopg, whose own close would wait, or pull it from under a thread.

    Whoever waits on it gets an ``OperationalError``.
    """
    with (
        suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as below,
    ):
        below.shutdown(socket.SHUT_RDWR)
