"""For each fault its likely causes, the likeliest first, and the command that proves each. Pure.

A command is what can be pasted: names, namespaces and the caller's own flags of kubectl are filled
in. What is to be run at the site has no kubectl in it.
"""

import shlex
from dataclasses import dataclass

from derops.data_path import AssetFault, SeenFault, SharedFault
from derops.installation import CONFIG_MAP
from derops_cli.diagnosis import Cause
from derops_cli.evidence import SYSTEM_NAMESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What commands are for."""

    asset: str = ""
    namespace: str = ""
    system: str = SYSTEM_NAMESPACE
    flags: tuple[str, ...] = ()
    """Flags of kubectl that the caller gave, such as ``--context``."""

    def fill(self, command: str, dispatch: str = "") -> str:
        """Return a command with the names filled in."""
        return command.format(
            kubectl=shlex.join(("kubectl", *self.flags)),
            asset=shlex.quote(self.asset),
            dispatch=shlex.quote(dispatch),
            ns=shlex.quote(self.namespace),
            system=shlex.quote(self.system),
            installation=CONFIG_MAP,
        )


_DESCRIBE = "{kubectl} describe derasset {asset} -n {ns}"
_AGENT_LOG = "docker logs --tail 30 derops-agent  # at the site"
_AGENT_READY = "docker exec derops-agent /opt/derops/bin/ready 8083  # at the site"
_AGENT_PODS = "{kubectl} get pods -n {ns} -o wide  # an agent in the cluster"
_CERTIFICATE = "{kubectl} describe certificates -n {ns} -l derops.io/asset={asset}"
_REQUESTS = "{kubectl} get certificaterequests -n {ns} --sort-by=.metadata.creationTimestamp"
_GATEWAY_READY = (
    "{kubectl} exec -n {system} derops-headend-0 -c gateway -- /opt/derops/bin/ready 8081"
)
_GATEWAY_LOG = "{kubectl} logs -n {system} derops-headend-0 -c gateway --since=10m --tail=30"
_GATEWAY_DISK = "{kubectl} exec -n {system} derops-headend-0 -c gateway -- df -h /data"
_WRITER_READY = (
    "{kubectl} exec -n {system} derops-headend-0 -c writer -- /opt/derops/bin/ready 8082"
)
_WRITER_LOG = "{kubectl} logs -n {system} derops-headend-0 -c writer --since=10m --tail=30"
_HEADEND_PODS = "{kubectl} get pods -n {system} -l app.kubernetes.io/component=headend -o wide"
_OPERATOR_PODS = "{kubectl} get deployment,pods -n {system}"
_OPERATOR_READY = "{kubectl} exec -n {system} deploy/derops-operator -- /opt/derops/bin/ready 8080"
_OPERATOR_LOG = "{kubectl} logs -n {system} deploy/derops-operator --since=10m --tail=30"
_DATABASE_POD = "{kubectl} describe pod derops-postgresql-0 -n {system}  # the pilot's database"
_DATABASE_LOG = "{kubectl} logs -n {system} derops-postgresql-0 -c postgresql --tail=30"
_DATABASE_DISK = (
    "{kubectl} exec -n {system} derops-postgresql-0 -c postgresql -- df -h /var/lib/postgresql/data"
)
_ROLES = (
    "{kubectl} exec -n {system} derops-headend-0 -c writer -- derops-headend database roles --check"
)
_STATUS_JSON = "{kubectl} get configmap {installation} -n {system} -o yaml"

_CAUSES: dict[AssetFault | SharedFault | SeenFault, tuple[tuple[str, str], ...]] = {
    AssetFault.DEVICE_SILENT: (
        ("the device has no power, or is cut off from its agent", _DESCRIBE),
        ("its address, port or unit in the agent's file is wrong", _AGENT_LOG),
        ("a gateway or line that it shares is down: its neighbours are silent too",
         "{kubectl} get derassets -n {ns}"),
    ),
    AssetFault.NO_SAMPLES: (
        ("the agent's loop stands still, or is busy with the device", _AGENT_READY),
        ("every point of the device is bad, so that there is nothing to keep", _DESCRIBE),
    ),
    AssetFault.CLOCK_WRONG: (
        ("the clock of the agent's machine is not synchronised", "timedatectl  # at the site"),
        ("the clock of the gateway's node is wrong: then all agents seem to be",
         "{kubectl} get derassets -A"),
    ),
    AssetFault.OUTBOX_FAILING: (
        ("the agent's disk is full", "df -h /var/lib/derops-agent  # at the site"),
        ("the disk fails, or is mounted read-only", _AGENT_LOG),
    ),
    AssetFault.OUTBOX_BEHIND: (
        ("it catches up after it was offline: the oldest sample gets newer", _DESCRIBE),
        ("the link is too slow for what the asset measures", _AGENT_READY),
        ("the gateway takes no telemetry now", _GATEWAY_READY),
    ),
    AssetFault.NOT_ENROLLED: (
        ("cert-manager has not issued the certificate", _CERTIFICATE),
        ("its request was denied, or the issuer is not ready", _REQUESTS),
        ("the issuer is missing", "{kubectl} get clusterissuer derops-agent"),
    ),
    AssetFault.CERTIFICATE_EXPIRED: (
        ("the renewed certificate was not brought to the site",
         "{kubectl} get derasset {asset} -n {ns} -o jsonpath='{{.status.identity}}'"),
        ("cert-manager did not renew it", _CERTIFICATE),
        ("the issuer cannot sign", "{kubectl} describe clusterissuer derops-agent"),
    ),
    AssetFault.QUARANTINED: (
        ("two processes used its identity, or a person set it",
         "{kubectl} get derasset {asset} -n {ns} "
         "-o jsonpath='{{.status.identity.quarantine}}'"),
        ("the Events say since when, and by whom", _DESCRIBE),
    ),
    AssetFault.OUT_OF_SERVICE: (
        ("a person took it out of service: spec.operatingState",
         "{kubectl} get derasset {asset} -n {ns} -o jsonpath='{{.spec.operatingState}}'"),
    ),
    AssetFault.AGENT_OFFLINE: (
        ("the agent does not run", _AGENT_PODS),
        ("its machine or its link is down, or a firewall is in the way", _AGENT_READY),
        ("it is refused; the message of Connected, and its own log, say why", _AGENT_LOG),
        ("the gateway lets nobody in, and others are offline too", _GATEWAY_READY),
    ),
    AssetFault.TELEMETRY_REFUSED: (
        ("the agent is of a version that the gateway does not understand", _AGENT_LOG),
        ("what it sends breaks a rule, which the gateway's log names", _GATEWAY_LOG),
    ),
    SharedFault.GATEWAY_LOST: (
        ("the gateway's pod does not run", _HEADEND_PODS),
        ("it runs and is not ready", _GATEWAY_READY),
        ("the certificates between operator and gateway do not fit", _OPERATOR_READY),
    ),
    SharedFault.LOG_FAILING: (
        ("the gateway's volume is full or fails", _GATEWAY_DISK),
        ("NATS does not answer", _GATEWAY_READY),
        ("what it says itself", _GATEWAY_LOG),
    ),
    SharedFault.LOG_FULL: (
        ("the writer does not take it away", _WRITER_READY),
        ("the volume or eventLog.maxBytes is too small", _GATEWAY_DISK),
    ),
    SharedFault.LOG_DAMAGED: (
        ("a record of the log does not match its checksum; which one", _WRITER_READY),
        ("the disk below it fails", _WRITER_LOG),
    ),
    SharedFault.WRITER_SILENT: (
        ("the writer does not run, or starts again and again", _HEADEND_PODS),
        ("it runs and stands still", _WRITER_READY),
        ("what it says itself", _WRITER_LOG),
    ),
    SharedFault.WRITER_BEHIND: (
        ("it catches up after the database was away: the backlog falls", _WRITER_READY),
        ("the database is too slow", _WRITER_LOG),
    ),
    SharedFault.DATABASE_UNREACHABLE: (
        ("the database does not run", _DATABASE_POD),
        ("its address is wrong, or the network does not let the writer through", _WRITER_READY),
    ),
    SharedFault.DATABASE_REFUSES: (
        ("the password was changed, or the role is missing", _WRITER_READY),
        ("a right of the role is missing", _ROLES),
        ("the URL leads to another database", _WRITER_LOG),
    ),
    SharedFault.DATABASE_FULL: (
        ("its volume is full", _DATABASE_DISK),
        ("what it says itself", _DATABASE_LOG),
    ),
    SharedFault.DATABASE_FAILING: (
        ("what the writer was answered", _WRITER_LOG),
        ("what the database says itself", _DATABASE_LOG),
    ),
    SeenFault.OPERATOR_SILENT: (
        ("the operator does not run", _OPERATOR_PODS),
        ("it runs and waits for something", _OPERATOR_READY),
        ("it may not write any more: a quota, a webhook, a right", _OPERATOR_LOG),
        ("when it last wrote", _STATUS_JSON),
    ),
    SeenFault.NOTHING_STORED: (
        ("the writer stores, and not this asset: see its quarantine", _WRITER_READY),
        ("the agent sends nothing that is new", _AGENT_READY),
        ("somebody deleted the rows, or the API reads another database", _ROLES),
    ),
    SeenFault.OLD_SAMPLES: (
        ("the agent brings what it kept while it was away, and catches up", _AGENT_READY),
        ("the agent's clock is behind", "timedatectl  # at the site"),
    ),
}  # fmt: skip


def causes_of(fault: AssetFault | SharedFault | SeenFault, place: Place) -> tuple[Cause, ...]:
    """Return the likely causes of a fault with their commands, the likeliest first."""
    return tuple(Cause(words, place.fill(command)) for words, command in _CAUSES[fault])
