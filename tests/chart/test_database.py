"""The pilot's PostgreSQL has our roles, lets in who shows a certificate of one, and renews its own.

The server is the machine's own. What it is started with, and what its second container runs, is
what the chart renders; paths are the only difference.
"""

import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.pki import Authority, Leaf
from tests.stack import places
from tests.stack.chart import NAMESPACE, documents
from tests.stack.postgres import find_installation
from tests.stack.processes import Process
from tests.waiting import until

SERVICE = f"derops-postgresql.{NAMESPACE}.svc"


_MADE = "the roles are there"


class PilotDatabase:
    """The chart's database, as far as one can have it without a cluster."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority("derops database CA")
        self.installation = find_installation()
        self.port = places.free_port()
        manifests = documents({"postgresql": {"enabled": True}})
        self.files = _named(manifests, "ConfigMap", "derops-postgresql")["data"]
        pod = _named(manifests, "StatefulSet", "derops-postgresql")["spec"]["template"]["spec"]
        self._server, self._reload = pod["containers"]
        self._urls = {
            "derops_writer": _url(manifests, "derops-headend", "DEROPS_WRITER_DATABASE_URL"),
            "derops_api": _url(manifests, "derops-api", "DEROPS_API_DATABASE_URL"),
        }
        for name in ("etc", "run", "data"):
            (directory / name).mkdir()
        for name, text in self.files.items():
            (directory / "etc" / name).write_text(text, encoding="utf-8")
        self.show_certificate()
        self._give(directory)
        subprocess.run(
            self.installation.command(
                "initdb", f"--pgdata={directory}/data", "--username=postgres", "--auth=reject",
                "--no-sync",
            ),
            user=self.installation.user, cwd=directory, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.processes = [
            self._process("postgres", [*self._arguments(), "-c", "fsync=off"]),
            self._process("reload", ["/bin/sh", "-euc", self._here(self._reload["args"][0])]),
        ]

    def start(self) -> None:
        for process in self.processes:
            process.start()
        self.processes[0].wait_until(self._answers)
        # As the image does at its first start, while the container beside it waits.
        with self.inside("postgres") as connection:
            connection.execute("create database derops")
        self.wait_for_roles()

    def wait_for_roles(self) -> None:
        """Wait until the container beside the server has made the roles once more."""
        made = self.processes[1].log_file.read_text().count(_MADE)
        self.processes[1].wait_until(
            lambda: self.processes[1].log_file.read_text().count(_MADE) > made
        )

    def show_certificate(self) -> None:
        """Mount a new certificate for the server, as a kubelet would."""
        leaf = self.authority.server([SERVICE], [])
        _mount(self.directory / "tls", _files(leaf, self.authority), self.installation.user)

    def connect(
        self, client: Leaf | None, role: str = "derops_writer", **changes: str
    ) -> psycopg.Connection:
        """Connect by the URL of a role, with another certificate or none."""
        parts: dict[str, Any] = dict(conninfo_to_dict(self._urls[role]))
        folder = self.directory / "client"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        leaf = client or self.authority.client("nobody")
        for name, content in _files(leaf, self.authority).items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        for name in ("sslrootcert", "sslcert", "sslkey"):
            parts[name] = str(folder / Path(parts[name]).name)
        if client is None:
            parts["sslcert"] = parts["sslkey"] = str(folder / "none")
        parts |= {"hostaddr": "127.0.0.1", "port": self.port, "connect_timeout": 5}
        return psycopg.connect(**(parts | changes))

    def inside(self, database: str) -> psycopg.Connection:
        """Connect as `kubectl exec` does: by the socket in the pod."""
        return psycopg.connect(
            host=f"{self.directory}/run",
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=True,
        )

    def _arguments(self) -> list[str]:
        program, *options = [self._here(each) for each in self._server["args"]]
        return [
            str(self.installation.programs / program), "-D", f"{self.directory}/data", *options,
            "-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1",
            "-c", f"unix_socket_directories={self.directory}/run",
        ]  # fmt: skip

    def _here(self, text: str) -> str:
        return (
            text.replace("/etc/derops", f"{self.directory}/etc")
            .replace("/tls/", f"{self.directory}/tls/")
            .replace("/var/run/postgresql", f"{self.directory}/run")
            .replace("sleep 10", "sleep 1")
        )

    def _process(self, name: str, command: list[str]) -> Process:
        return Process(
            name, command, directory=self.directory, user=self.installation.user,
            environment={"PGPORT": str(self.port)},
            stop_signal=signal.SIGINT if name == "postgres" else signal.SIGTERM,
        )  # fmt: skip

    def _answers(self) -> bool:
        try:
            self.inside("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def _give(self, path: Path) -> None:
        if user := self.installation.user:
            for each in (path, *path.rglob("*")):
                shutil.chown(each, user) if each.exists() else None


def _named(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(
        each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )


def _url(manifests: list[dict[str, Any]], name: str, variable: str) -> str:
    """Return a variable of a StatefulSet's containers."""
    pod = _named(manifests, "StatefulSet", name)["spec"]["template"]["spec"]
    given = [each for container in pod["containers"] for each in container["env"]]
    return next(str(each["value"]) for each in given if each["name"] == variable)


def _files(leaf: Leaf, authority: Authority) -> dict[str, bytes]:
    return {**leaf.files, "ca.crt": authority.pem}


def _mount(directory: Path, files: Mapping[str, bytes], user: str | None) -> None:
    """Show files through ``..data``, and give them away before anybody can see them."""
    directory.mkdir(exist_ok=True)
    fresh = directory / f"..{len(list(directory.iterdir()))}"
    fresh.mkdir()
    for name, content in files.items():
        (fresh / name).write_bytes(content)
        (fresh / name).chmod(0o600)
        if user:
            shutil.chown(fresh / name, user)
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    link = directory / "..data_tmp"
    link.symlink_to(fresh.name)
    link.replace(directory / "..data")


@pytest.fixture(scope="module")
def database() -> Iterator[PilotDatabase]:
    with places.private_directory("pilot-database") as directory:
        running = PilotDatabase(directory)
        try:
            running.start()
            yield running
        finally:
            for process in reversed(running.processes):
                if process.started:
                    process.terminate()


def test_the_writer_gets_in_by_its_certificate_and_may_make_tables(database: PilotDatabase) -> None:
    with database.connect(database.authority.client("derops_writer")) as connection:
        connection.execute("create table made (here int)")
        connection.execute("drop table made")


def test_the_api_gets_in_by_its_certificate_and_may_make_none(database: PilotDatabase) -> None:
    client = database.authority.client("derops_api")
    with database.connect(client, "derops_api") as connection:
        assert connection.execute("select current_user").fetchone() == ("derops_api",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create table made (here int)")


@pytest.mark.parametrize(
    ("user", "said"),
    [
        pytest.param(None, "requires a valid client certificate", id="none"),
        pytest.param("somebody", "certificate authentication failed", id="another role's"),
    ],
)
def test_no_other_certificate_gets_in(database: PilotDatabase, user: str | None, said: str) -> None:
    leaf = database.authority.client(user) if user else None
    with pytest.raises(psycopg.OperationalError, match=said):
        database.connect(leaf)


def test_a_certificate_of_another_authority_does_not_get_in(database: PilotDatabase) -> None:
    with pytest.raises(psycopg.OperationalError):
        database.connect(Authority("another").client("derops_writer"))


def test_nobody_is_superuser_over_the_network(database: PilotDatabase) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        database.connect(database.authority.client("postgres"), user="postgres")


def test_nothing_goes_in_the_clear(database: PilotDatabase) -> None:
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        database.connect(database.authority.client("derops_writer"), sslmode="disable")


async def test_a_renewed_certificate_is_loaded_without_a_restart(database: PilotDatabase) -> None:
    loaded = "select pg_conf_load_time()"
    writer = database.authority.client("derops_writer")
    with database.connect(writer) as connection:
        before = connection.execute(loaded).fetchone()

    database.show_certificate()

    log = database.processes[1].log_file
    await until(lambda: "renewed certificate loaded" in log.read_text())
    with database.connect(writer) as connection:
        assert connection.execute(loaded).fetchone() != before
    assert database.processes[0].alive


def test_an_upgrade_makes_the_roles_that_an_earlier_version_did_not_have(
    database: PilotDatabase,
) -> None:
    beside = database.processes[1]
    beside.terminate()
    with database.inside("derops") as connection:
        connection.execute("drop owned by derops_reader")
        connection.execute("drop role derops_reader")

    beside.start()
    database.wait_for_roles()

    with database.inside("derops") as connection:
        found = connection.execute("select rolname from pg_roles where rolname = 'derops_reader'")
        assert found.fetchall() == [("derops_reader",)]


def test_a_role_does_not_get_in_by_the_certificate_of_another(database: PilotDatabase) -> None:
    with pytest.raises(psycopg.OperationalError, match="certificate authentication failed"):
        database.connect(database.authority.client("derops_api"))


def test_the_container_beside_it_ends_when_told_to(database: PilotDatabase) -> None:
    assert database.processes[1].terminate() == 0
    database.processes[1].start()
