"""A PostgreSQL server of one's own, from the machine's own binaries."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql
from tests.stack import places
from tests.stack.processes import Process, StackError


class PostgresServer:
    """A server on a free loopback port with data in a private directory; fsync stays on."""

    def __init__(self, parent_directory: Path | None = None) -> None:
        self._parent_directory = parent_directory
        self._cleanup = ExitStack()
        self._password = secrets.token_urlsafe(12)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def url(self, database: str) -> str:
        return f"postgresql://derops:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._execute("create database {}", name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected."""
        self._execute("drop database {} with (force)", name)

    def _execute(self, statement: str, name: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def _start(self) -> None:
        programs, user = find_programs(), _unprivileged_user()
        self.programs = programs
        directory = self._cleanup.enter_context(
            places.private_directory("postgres", self._parent_directory)
        )
        data, secret = directory / "data", directory / "password"
        data.mkdir(mode=0o700)
        secret.write_text(self._password)
        if user:
            shutil.chown(data, user)
            shutil.chown(secret, user)
        _run(
            [
                str(programs / "initdb"), f"--pgdata={data}", f"--pwfile={secret}",
                "--username=derops", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C",
                "--no-sync", "--no-instructions",
            ],
            user,
            directory,
        )  # fmt: skip
        self.port = places.free_port()
        self.process = Process(
            "postgres",
            [
                str(programs / "postgres"), "-D", str(data), "-p", str(self.port),
                "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                "-c", "max_connections=200",
            ],
            directory=directory,
            user=user,
            stop_signal=signal.SIGINT,  # "fast": ends sessions instead of waiting for them
        )  # fmt: skip
        self._cleanup.callback(self.process.terminate)
        self.process.start()
        self.process.wait_until(self._accepts)

    def _accepts(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def find_programs() -> Path:
    """Return where ``initdb`` and ``postgres`` are: PATH, Debian's place, or installed now."""
    found = _search()
    if found is None and os.getuid() == 0 and shutil.which("apt-get"):
        print("installing PostgreSQL with apt-get (once for this machine)", flush=True)
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        _run(["apt-get", "update", "-q"], None, Path("/"), environment)
        _run(
            ["apt-get", "install", "-qy", "--no-install-recommends", "postgresql"],
            None,
            Path("/"),
            environment,
        )
        found = _search()
    if found is None:
        raise StackError(
            "PostgreSQL's initdb and postgres are neither on PATH nor in /usr/lib/postgresql;"
            " install the server, for example: apt-get install postgresql"
        )
    return found


def _search() -> Path | None:
    on_path = shutil.which("initdb")
    if on_path and shutil.which("postgres"):
        return Path(on_path).parent
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3])
    )
    return debian[-1].parent if debian else None


def _unprivileged_user() -> str | None:
    """Return who runs the server in root's place: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def _run(
    command: list[str],
    user: str | None,
    directory: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    done = subprocess.run(
        command,
        user=user,
        cwd=directory,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"{command[0]} failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
