"""Ways to break one asset, or a dispatch; those that break it for all are of ``tests.alerts``."""

import base64
import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from tests.api.cutting import CutProxy
from tests.drill.ground import UNITS, Ground
from tests.e2e.acting import Pilot
from tests.faults.ground import filled, small_disk
from tests.stack import places
from tests.stack.controlplane import AGENT_ISSUER
from tests.stack.fleet import secret_name
from tests.stack.stack import Stack
from tests.waiting import eventually

DISPATCH = "evening-peak"
SHIFT_SECONDS = 300
"""How far ahead a clock is that is wrong."""

CERTIFICATE_SECONDS = 45
"""For how long the certificate is good that is about to expire."""

AS_CERT_MANAGER = (
    "--as=system:serviceaccount:cert-manager:cert-manager",
    "--as-group=system:masters",  # kubectl reads before it patches, and that it may not
)
"""Who alone may write what was issued: the admission policies hold for an administrator, too."""

Broken = Callable[[Ground, str], AbstractContextManager[None]]
"""Breaks the asset of that name, or what all assets share, and mends it at the end of the block."""


def for_all(broken: Callable[[Pilot], AbstractContextManager[None]]) -> Broken:
    """Return a way to break what all assets share."""
    return lambda ground, _: broken(ground.pilot)


def in_the_database(broken: Callable[[Stack], AbstractContextManager[None]]) -> Broken:
    """Return a way to break the database."""
    return lambda ground, _: broken(ground.pilot.stack)


@contextmanager
def silent_device(ground: Ground, asset: str) -> Iterator[None]:
    with ground.with_faults(asset, offlineFrom="2000-01-01T00:00:00Z"):
        yield


@contextmanager
def dead_unit(ground: Ground, asset: str) -> Iterator[None]:
    unit = ground.bus.devices[UNITS[asset]]
    unit.is_dead = True
    yield
    unit.is_dead = False


@contextmanager
def wrong_clock(ground: Ground, asset: str) -> Iterator[None]:
    shifted = {"LD_PRELOAD": str(_shifting()), "SHIFT_SECONDS": str(SHIFT_SECONDS)}
    with ground.surrounded(asset, shifted):
        yield


@cache
def _shifting() -> Path:
    """Return the library that shifts a clock; this process made it."""
    source = Path(__file__).with_name("clock.c")
    target = places.BUILD / "drill" / "clock.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_suffix(f".{threading.get_native_id()}")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-o", made, source, "-ldl"], check=True)
    return made.replace(target)


@contextmanager
def full_disk(ground: Ground, asset: str) -> Iterator[None]:
    """Give the agent a small disk of its own, and fill it once the agent's data flow."""
    with (
        tempfile.TemporaryDirectory() as folder,
        small_disk(Path(folder)) as disk,
        ground.reconfigured(asset, dataDirectory=str(disk / "data")),
    ):
        ground.pilot.wait_for_condition("derasset", asset, "Connected", "True")
        with filled(disk):
            yield


@contextmanager
def killed_agent(ground: Ground, asset: str) -> Iterator[None]:
    ground.pilot.stack.kill_agent(ground.pilot.namespace, asset)
    yield
    ground.pilot.stack.restart_agent(ground.pilot.namespace, asset)


@contextmanager
def cut_network(ground: Ground, asset: str) -> Iterator[None]:
    """Lead the agent over a proxy, and have that one pass nothing on, and end nothing."""
    with CutProxy(f"https://{ground.pilot.stack.gateway}") as proxy:
        gateways = [f"127.0.0.1:{proxy.port}"]
        with ground.reconfigured(asset, gateways=gateways):
            eventually(lambda: proxy.taken, "the agent to come over the proxy")
            ground.pilot.wait_for_condition("derasset", asset, "Connected", "True")
            proxy.hold()
            yield
            proxy.pass_on()


@contextmanager
def quarantined(ground: Ground, asset: str) -> Iterator[None]:
    _change(ground, asset, operatingState="Quarantined")
    yield
    quarantine = ground.pilot.get("derasset", asset)["status"]["identity"]["quarantine"]
    lift = {"quarantinedAt": quarantine["at"], "key": "Keep"}
    _change(ground, asset, operatingState="InService", identity={"lift": lift})


def _change(ground: Ground, asset: str, **spec: object) -> None:
    patch = json.dumps({"spec": spec})
    kubectl, namespace = ground.pilot.cluster.kubectl, ground.pilot.namespace
    kubectl("patch", "derasset", asset, "-n", namespace, "--type=merge", "-p", patch)


@contextmanager
def expired_certificate(ground: Ground, asset: str) -> Iterator[None]:
    """Play an issuer whose certificates are short, for one asset, until this one is over."""
    pilot = ground.pilot
    cert_manager = pilot.stack.control_plane.processes["cert-manager"]
    cert_manager.kill()
    secret = secret_name(asset)
    requests = json.loads(
        pilot.cluster.kubectl("get", "certificaterequests", "-n", pilot.namespace, "-o", "json")
    )["items"]
    (request, *_) = sorted(
        (each for each in requests if _certificate_of(each) == _certificate_in(pilot, secret)),
        key=lambda each: str(each["metadata"]["creationTimestamp"]),
        reverse=True,
    )
    ends = datetime.now(UTC) + timedelta(seconds=CERTIFICATE_SECONDS)
    pem = _issue(pilot, base64.b64decode(request["spec"]["request"]), ends)
    encoded = base64.b64encode(pem).decode()
    pilot.cluster.kubectl(
        "patch", "certificaterequest", request["metadata"]["name"], "-n", pilot.namespace,
        "--subresource=status", "--type=merge", *AS_CERT_MANAGER,
        "-p", json.dumps({"status": {"certificate": encoded}}),
    )  # fmt: skip
    pilot.cluster.kubectl(
        "patch", "secret", secret, "-n", pilot.namespace, "--type=merge",
        "-p", json.dumps({"data": {"tls.crt": encoded}}),
    )  # fmt: skip

    def is_current() -> bool:
        identity = pilot.get("derasset", asset)["status"]["identity"]
        return str(identity["current"]["notAfter"]) <= ends.strftime("%Y-%m-%dT%H:%M:%SZ")

    eventually(is_current, "the agent to use the short certificate")
    eventually(lambda: datetime.now(UTC) > ends, "its end")
    yield
    cert_manager.start()


def _certificate_in(pilot: Pilot, secret: str) -> str:
    """Return the Certificate that fills a Secret."""
    annotations = pilot.get("secret", secret)["metadata"]["annotations"]
    return str(annotations["cert-manager.io/certificate-name"])


def _certificate_of(request: dict[str, dict[str, dict[str, str]]]) -> str:
    return request["metadata"]["annotations"].get("cert-manager.io/certificate-name", "")


def _issue(pilot: Pilot, request: bytes, ends: datetime) -> bytes:
    """Sign a request with the authority of the agents."""
    issuer = pilot.get("clusterissuer", AGENT_ISSUER)
    secret = json.loads(
        pilot.cluster.kubectl(
            "get", "secret", issuer["spec"]["ca"]["secretName"], "-n", "cert-manager", "-o", "json"
        )
    )["data"]
    authority = x509.load_pem_x509_certificate(base64.b64decode(secret["tls.crt"]))
    key = load_pem_private_key(base64.b64decode(secret["tls.key"]), None)
    asked = x509.load_pem_x509_csr(request)
    builder = (
        x509.CertificateBuilder()
        .subject_name(asked.subject)
        .issuer_name(authority.subject)
        .public_key(asked.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(seconds=1))
        .not_valid_after(ends)
    )
    for extension in asked.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]  # it is none of Ed25519
    return signed.public_bytes(Encoding.PEM)


@contextmanager
def refusing_device(ground: Ground, asset: str) -> Iterator[None]:
    with ground.with_faults(asset, refuseWrites=True), _ordered(ground, asset):
        yield


@contextmanager
def late_order(ground: Ground, asset: str) -> Iterator[None]:
    """Order what an agent that is away gets too late."""
    with killed_agent(ground, asset), _ordered(ground, asset):
        yield


@contextmanager
def _ordered(ground: Ground, asset: str) -> Iterator[None]:
    ground.pilot.dispatch(DISPATCH, asset, durationSeconds=120)
    yield
    ground.pilot.cluster.kubectl("delete", "dispatch", DISPATCH, "-n", ground.pilot.namespace)
