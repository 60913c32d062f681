"""A PostgreSQL server of one's own, from the machine's own binaries."""

import contextlib
import os
import pwd
import secrets
import select
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql
from tests.stack import places
from tests.stack.processes import Process, StackError

OWNER = "derops"
WRITER, READER, API = ROLES = ("derops_writer", "derops_reader", "derops_api")
_SUPERUSER = "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Programs of one PostgreSQL, and how they are run."""

    programs: Path
    user: str | None
    """Who runs them in root's place; None = whoever runs us."""
    root: Path | None = None
    """Where they are entered by chroot; their paths are as seen from there."""
    options: tuple[str, ...] = ()

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return how to run a program of it."""
        enter = ["chroot", f"--userspec={self.user}", str(self.root)] if self.root else []
        return [*enter, str(self.programs / program), *arguments]

    def path(self, path: Path) -> str:
        """Return a path as the programs see it."""
        return f"/{path.relative_to(self.root)}" if self.root else str(path)

    @property
    def outer_user(self) -> str | None:
        """Return who starts them: chroot changes the user itself."""
        return None if self.root else self.user

    def __str__(self) -> str:
        return str(self.root or self.programs)


class PostgresServer:
    """A server on a free loopback port with data in a private directory; fsync stays on."""

    def __init__(
        self, parent_directory: Path | None = None, installation: Installation | None = None
    ) -> None:
        self._parent_directory = parent_directory
        self.installation = installation or find_installation()
        self._cleanup = ExitStack()
        self._password = secrets.token_urlsafe(12)
        self._superuser_password = secrets.token_urlsafe(12)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def url(self, database: str, role: str = OWNER) -> str:
        """Return a URL of the role that owns the databases, or of another; no superuser's."""
        return f"postgresql://{role}:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_for_roles(self, name: str, roles: bytes) -> str:
        """Create an empty database of the superuser with our roles, and return the writer's URL."""
        self._administer(sql.SQL("create database {}").format(sql.Identifier(name)))
        self.apply_roles(name, roles)
        return self.url(name, WRITER)

    def apply_roles(self, name: str, roles: bytes) -> None:
        """Run in a database the SQL that makes our roles, and give them a password."""
        with self.superuser(name) as connection:
            connection.execute(roles)
            for role in ROLES:
                connection.execute(
                    sql.SQL("alter role {} password {}").format(
                        sql.Identifier(role), sql.Literal(self._password)
                    )
                )

    def superuser(self, database: str = "postgres") -> psycopg.Connection:
        """Return a connection of the superuser, in autocommit mode."""
        return psycopg.connect(self._superuser_url(database), autocommit=True)

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._administer(
            sql.SQL("create database {} owner {}").format(
                sql.Identifier(name), sql.Identifier(OWNER)
            )
        )
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected."""
        self._administer(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def crash(self) -> None:
        """Kill the server and all of its processes, as a power cut would; then start it again."""
        os.kill(self.process.pid, signal.SIGSTOP)  # so that it starts no more of them
        children = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        with ExitStack() as opened:
            handles = []
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    handles.append(os.pidfd_open(int(child)))
                    opened.callback(os.close, handles[-1])
            self.process.kill()
            for handle in handles:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            for handle in handles:  # the server does not start while one has its shared memory
                select.select([handle], [], [])
        self.start_again()

    def start_again(self) -> None:
        """Start a server that ended, with its data, and wait until it takes connections."""
        self.process.start()
        self.process.wait_until(self._accepts)

    def _administer(self, statement: sql.Composed) -> None:
        with self.superuser() as connection:
            connection.execute(statement)

    def _superuser_url(self, database: str = "postgres") -> str:
        login = f"{_SUPERUSER}:{self._superuser_password}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def _start(self) -> None:
        installation = self.installation
        parent = installation.root / "srv" if installation.root else self._parent_directory
        directory = self._cleanup.enter_context(places.private_directory("postgres", parent))
        data, secret = directory / "data", directory / "password"
        data.mkdir(mode=0o700)
        secret.touch(mode=0o600)
        secret.write_text(self._superuser_password)
        for path in (data, secret):
            self._give(path)
        _run(
            installation.command(
                "initdb", f"--pgdata={installation.path(data)}",
                f"--pwfile={installation.path(secret)}", f"--username={_SUPERUSER}",
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
                "--no-instructions",
            ),
            installation.outer_user,
            directory,
        )  # fmt: skip
        self.port = places.free_port()
        self.process = Process(
            "postgres",
            installation.command(
                "postgres", "-D", installation.path(data), "-p", str(self.port),
                "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                "-c", "max_connections=200", *installation.options,
            ),
            directory=directory,
            user=installation.outer_user,
            stop_signal=signal.SIGINT,  # "fast": ends sessions instead of waiting for them
        )  # fmt: skip
        self._cleanup.callback(self.process.terminate)
        self.process.start()
        self.process.wait_until(self._accepts)
        secret.unlink()
        self._administer(
            sql.SQL("create role {} login password {}").format(
                sql.Identifier(OWNER), sql.Literal(self._password)
            )
        )

    def _give(self, path: Path) -> None:
        """Give a file to whoever runs the server."""
        if self.installation.root:
            _run(
                ["chroot", str(self.installation.root), "chown", str(self.installation.user),
                 self.installation.path(path)],
                None,
                Path("/"),
            )  # fmt: skip
        elif self.installation.user:
            shutil.chown(path, self.installation.user)

    def _accepts(self) -> bool:
        try:
            psycopg.connect(self._superuser_url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def find_installation() -> Installation:
    """Return the PostgreSQL of this machine: on PATH, in Debian's place, or installed now."""
    places.skip_without_parts()
    return Installation(programs=_find_programs(), user=_unprivileged_user())


def _find_programs() -> Path:
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
