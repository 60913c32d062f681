"""Tries derops out from inside its cluster. Runs in the headend's image.

- ``pilot.py apply FILE``: create or change a DERAsset (JSON), as soon as its kind is served
- ``pilot.py identity``: make the asset of the test, and wait for the key of its agent
- ``pilot.py dispatch``: bring one dispatch to Complete with evidence Effect, find it and its
  telemetry in the database, and take all of it away
"""

import base64
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
IDENTITY = Path("/identity")
GROUP = "/apis/derops.io/v1alpha1"
PATIENCE_SECONDS = 120
DISPATCH_SECONDS = 15
WATTS = 5000
OVER = ("Complete", "Expired", "Failed", "Rejected", "Cancelled", "Superseded")
RATINGS = {
    "maxInjectionWatts": 10000,
    "maxAbsorptionWatts": 8000,
    "energyCapacityWattHours": 20000,
}

Answer = TypeVar("Answer")


class PilotError(Exception):
    """What did not come true, for a person."""


class Api:
    """The API server, as this pod's ServiceAccount."""

    def __init__(self) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        self._server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))

    def call(
        self, method: str, path: str, body: object = None, kind: str = "application/json"
    ) -> dict[str, Any] | None:
        """Return the answer; None where there is no such object."""
        request = urllib.request.Request(  # noqa: S310
            self._server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
                "Content-Type": kind,
            },
        )
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=10) as reply:  # noqa: S310
                answer: dict[str, Any] = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            said = error.read().decode(errors="replace")
            raise PilotError(f"{method} {path}: {error.code} {error.reason} {said}") from None

    def apply(self, resource: str, manifest: dict[str, Any]) -> dict[str, Any] | None:
        """Create or change an object, server-side; None where its kind is not served."""
        space, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        return self.call(
            "PATCH",
            f"{GROUP}/namespaces/{space}/{resource}/{name}?fieldManager=derops-chart&force=true",
            manifest,
            "application/apply-patch+yaml",
        )


def until(what: str, look: Callable[[], tuple[Answer | None, str]]) -> Answer:
    """Return the first answer that ``look`` has; beside it, it says how things stand."""
    deadline, told, standing = time.monotonic() + PATIENCE_SECONDS, None, ""
    while time.monotonic() < deadline:
        try:
            answer, standing = look()
        except (OSError, PilotError) as error:
            answer, standing = None, str(error)
        if answer:
            return answer
        if standing != told:
            say(f"waiting for {what}: {standing}")
            told = standing
        time.sleep(0.5)
    raise PilotError(f"no {what} after {PATIENCE_SECONDS} s: {standing}")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def standing_of(thing: dict[str, Any] | None) -> str:
    """Return in a line what an object says of itself."""
    if thing is None:
        return "it is not there"
    status = thing.get("status", {})
    doubts = [
        f"{each['type']}={each['status']} ({each.get('reason', '')}: {each.get('message', '')})"
        for each in status.get("conditions", [])
        if each["status"] != "True"
    ]
    told = ", ".join([status.get("phase", ""), *doubts]).strip(", ")
    return told or "it has no status: does the operator run?"


def serial_number(certificate: bytes) -> str:
    """Return the serial number of a certificate as the ledger has it."""
    from cryptography import x509  # so that "apply" does not wait for it

    return f"{x509.load_pem_x509_certificate(certificate).serial_number:x}"


class Test:
    """One asset with a simulated battery and one dispatch; both belong to this pod."""

    def __init__(self) -> None:
        self._api = Api()
        self._namespace, self._name = os.environ["NAMESPACE"], os.environ["ASSET"]
        self._asset = f"{GROUP}/namespaces/{self._namespace}/derassets/{self._name}"
        self._dispatch = f"{GROUP}/namespaces/{self._namespace}/dispatches/{self._name}"
        identity = f"{self._name}-derops-agent"
        self._secret = f"/api/v1/namespaces/{self._namespace}/secrets/{identity}"
        self._certificate = (
            f"/apis/cert-manager.io/v1/namespaces/{self._namespace}/certificates/{identity}"
        )

    def identity(self) -> None:
        """Make the asset, and write key, certificate and server CA where the agent reads them."""
        self.remove()
        telemetry = {"intervalSeconds": 1}
        self._make("derassets", "DERAsset", type="Battery", ratings=RATINGS, telemetry=telemetry)
        for name, content in (until("agent's key", self._key) | until("CA", self._ca)).items():
            (IDENTITY / name).write_bytes(content)
        say("the agent has its key")

    def dispatch(self) -> None:
        """Order the battery to inject, and believe only what can be proved."""
        uid = until("connected asset", self._connected)
        self._make(
            "dispatches",
            "Dispatch",
            assetRef={"name": self._name},
            setpoint={"mode": "ActivePower", "activePowerWatts": WATTS},
            durationSeconds=DISPATCH_SECONDS,
        )
        status = until("end of the dispatch", self._ended)
        phase, evidence = status["phase"], status.get("execution", {}).get("evidence")
        if (phase, evidence) != ("Complete", "Effect"):
            raise PilotError(f"the dispatch is {phase}, evidence {evidence}: {json.dumps(status)}")
        say(f"the dispatch is {phase}, evidence {evidence}")
        say(f"the database has {until('rows in the database', lambda: self._rows(uid))}")

    def remove(self) -> None:
        """Take away what the test made, and wait until it is gone."""
        for path in (self._dispatch, self._asset):
            until(f"end of {path}", lambda path=path: self._gone(path))  # type: ignore[misc]
        # Its owner is gone. While it is there, cert-manager would make the Secret again.
        until("end of the certificate", lambda: (self._absent(self._certificate), "still there"))
        self._api.call("DELETE", self._secret)

    def _make(self, resource: str, kind: str, **spec: object) -> None:
        pod = {"name": os.environ["POD_NAME"], "uid": os.environ["POD_UID"]}
        owner = {"apiVersion": "v1", "kind": "Pod"} | pod
        manifest = {
            "apiVersion": "derops.io/v1alpha1",
            "kind": kind,
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "ownerReferences": [owner],
            },
            "spec": spec,
        }
        if self._api.apply(resource, manifest) is None:
            raise PilotError(f"this cluster does not know the kind {kind}: install the CRDs")

    def _key(self) -> tuple[dict[str, bytes] | None, str]:
        data = (self._api.call("GET", self._secret) or {}).get("data", {})
        files = {name: base64.b64decode(data.get(name, "")) for name in ("tls.crt", "tls.key")}
        asset = self._api.call("GET", self._asset)
        ledger = (asset or {}).get("status", {}).get("identity", {})
        known = {ledger[each]["serialNumber"] for each in ("current", "next") if each in ledger}
        if all(files.values()) and serial_number(files["tls.crt"]) in known:
            return files, ""
        return None, standing_of(asset)

    def _ca(self) -> tuple[dict[str, bytes] | None, str]:
        path = f"/api/v1/namespaces/{self._namespace}/configmaps/derops-server-ca"
        data = (self._api.call("GET", path) or {}).get("data", {})
        if "ca.crt" in data:
            return {"server-ca.crt": data["ca.crt"].encode()}, ""
        return None, "no ConfigMap derops-server-ca: does the operator run?"

    def _connected(self) -> tuple[str | None, str]:
        thing = self._api.call("GET", self._asset) or {}
        for each in thing.get("status", {}).get("conditions", []):
            if each["type"] == "Connected" and each["status"] == "True":
                return thing["metadata"]["uid"], ""
        return None, standing_of(thing)

    def _ended(self) -> tuple[dict[str, Any] | None, str]:
        thing = self._api.call("GET", self._dispatch)
        status = (thing or {}).get("status", {})
        return status if status.get("phase") in OVER else None, standing_of(thing)

    def _absent(self, path: str) -> bool:
        return self._api.call("GET", path) is None

    def _gone(self, path: str) -> tuple[bool, str]:
        thing = self._api.call("GET", path)
        if thing and "deletionTimestamp" not in thing["metadata"]:
            self._api.call("DELETE", path)
        return thing is None, f"finalizers {(thing or {}).get('metadata', {}).get('finalizers')}"

    def _rows(self, uid: str) -> tuple[str | None, str]:
        import psycopg  # only the headend's image has it

        url = os.environ["DEROPS_WRITER_DATABASE_URL"]
        try:
            with psycopg.connect(url, connect_timeout=10) as database:
                samples = database.execute(
                    "select count(*) from telemetry join asset using (asset_id)"
                    " where uid = %s and active_power_watts > %s",
                    (uid, WATTS / 2),
                ).fetchall()[0][0]
                ends = database.execute(
                    "select phase from dispatch_history where asset_uid = %s", (uid,)
                ).fetchall()
        except psycopg.Error as error:
            return None, str(error)
        found = f"{samples} samples of that power, and the dispatch as {[end for (end,) in ends]}"
        return found if samples and ("Complete",) in ends else None, found


def main() -> None:
    """Do what the arguments say."""
    match sys.argv[1:]:
        case ["apply", file]:
            asset = json.loads(Path(file).read_text())
            until("DERAsset", lambda: (Api().apply("derassets", asset), "its kind is not served"))
            say(f"DERAsset {asset['metadata']['name']} is there")
        case ["identity"]:
            Test().identity()
        case ["dispatch"]:
            test = Test()
            try:
                test.dispatch()
            finally:
                test.remove()
            say("PASSED")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except PilotError as failure:
        say(f"FAILED: {failure}")
        sys.exit(1)
