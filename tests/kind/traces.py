"""What a Docker daemon, and a node of Kubernetes on it, change of a machine, and how it goes again.

Looked at before the daemon starts, taken back after it ended. What others changed meanwhile stays:
of firewall rules only those that name Docker's chains and bridges go.
"""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LIMITS = {"fs/inotify/max_user_instances": 1024, "fs/inotify/max_user_watches": 524_288}
"""What a machine must allow at least: else the second cluster has pods with too many open files."""

_SYSCTLS = (
    # dockerd
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    # kubelet and kube-proxy
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    *LIMITS,
)
_FILES = (Path("/etc/docker/key.json"), Path("/opt/containerd"), Path("/run/docker"))
"""Files, and directories that go when nothing is in them."""
_FIREWALLS = ("iptables", "ip6tables")
_OURS = re.compile(
    r"\bDOCKER\b|\bDOCKER-|\bdocker0\b|\bbr-[0-9a-f]{12}\b"
    r"|-s (?P<container>\S+/32) -d (?P=container) .*-j MASQUERADE"
)
_LINK = re.compile(r"docker0|br-[0-9a-f]{12}|veth[0-9a-f]{7}")

Tables = dict[str, tuple[dict[str, str], list[str]]]
"""For each table its chains with their policies, and its rules."""


def look() -> dict[str, Any]:
    """Return what the machine is like, as JSON can hold it."""
    return {
        "sysctls": {name: value for name in _SYSCTLS if (value := _read(name)) is not None},
        "links": _links(),
        "files": [str(file) for file in _FILES if file.exists()],
        "firewalls": {each: _rules(each) for each in _FIREWALLS},
    }


def raise_limits() -> None:
    """Let more than one cluster be on the machine."""
    for name, least in LIMITS.items():
        if int(_read(name) or least) < least:
            (Path("/proc/sys") / name).write_text(str(least))


def take_back(before: dict[str, Any]) -> None:
    """Bring the machine back to what it was like."""
    for firewall in _FIREWALLS:
        for arguments in undo(before["firewalls"].get(firewall, ""), _rules(firewall)):
            _try([firewall, "-w", *arguments])
    for link in sorted(set(_links()) - set(before["links"])):
        if _LINK.fullmatch(link):
            _try(["ip", "link", "delete", link])
    for name, value in before["sysctls"].items():
        if _read(name) != value:
            with contextlib.suppress(OSError):
                (Path("/proc/sys") / name).write_text(value)
    for file in _FILES:
        if str(file) not in before["files"]:
            _remove_empty(file) if file.is_dir() else file.unlink(missing_ok=True)
    _remove_groups(Path("/sys/fs/cgroup"))


def unmount_below(*directories: Path) -> None:
    """Unmount all that is mounted in these directories, the deepest first."""
    mounts = Path("/proc/self/mounts").read_text()
    for point in below(mounts, directories):
        _try(["umount", "--lazy", point])


def below(mounts: str, directories: Iterable[Path]) -> list[str]:
    """Return where something is mounted in these directories, the deepest first."""
    points = [line.split(" ")[1] for line in mounts.splitlines()]
    return sorted(
        (each for each in points if any(Path(each).is_relative_to(top) for top in directories)),
        key=lambda point: (-point.count("/"), point),
    )


def undo(before: str, after: str) -> list[list[str]]:
    """Return the arguments of iptables that take back what Docker added between two savings."""
    old, new = parse(before), parse(after)
    commands: list[list[str]] = []
    for table, (chains, rules) in new.items():
        old_chains, old_rules = old.get(table, ({}, []))
        own = [each for each in chains if each not in old_chains and _OURS.search(each)]
        for rule in rules:
            words = shlex.split(rule)
            if rule not in old_rules and words[1] not in own and _OURS.search(rule):
                commands.append(["-t", table, "-D", *words[1:]])
        commands += [["-t", table, "-F", chain] for chain in own]
        commands += [["-t", table, "-X", chain] for chain in own]
        policy = old_chains.get("FORWARD", "ACCEPT")
        if table == "filter" and chains.get("FORWARD", policy) != policy:
            commands.append(["-t", table, "-P", "FORWARD", policy])
    return commands


def parse(saved: str) -> Tables:
    """Return what iptables-save printed, by table."""
    tables: Tables = {}
    chains: dict[str, str] = {}
    rules: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            chains, rules = {}, []
            tables[line[1:].strip()] = (chains, rules)
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            chains[name] = policy
        elif line.startswith("-A "):
            rules.append(line.strip())
    return tables


def _rules(firewall: str) -> str:
    if shutil.which(f"{firewall}-save") is None:
        return ""
    done = subprocess.run([f"{firewall}-save"], capture_output=True, text=True, check=False)
    return done.stdout


def _links() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def _read(name: str) -> str | None:
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return None


def _remove_groups(top: Path) -> None:
    """Remove control groups of containers that have ended; others may be of another daemon."""
    for docker in [*top.glob("*/docker"), *top.glob("docker")]:
        for group in docker.iterdir():
            if group.is_dir() and not has_processes(group):
                _remove_empty(group)
        with contextlib.suppress(OSError):
            docker.rmdir()


def has_processes(group: Path) -> bool:
    """Tell whether any process is in a control group or in one below it."""
    return any(file.read_text() for file in group.rglob("cgroup.procs"))


def _remove_empty(top: Path) -> None:
    """Remove a directory and those below it, as far as no file is in them."""
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()


def _try(command: list[str]) -> None:
    """Run a program; what it fails to take back is told, and the rest goes on."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"cannot take back: {' '.join(command)}: {error}", flush=True)
        return
    if done.returncode:
        print(f"cannot take back: {' '.join(command)}: {done.stderr.strip()}", flush=True)
