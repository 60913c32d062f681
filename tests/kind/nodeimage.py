"""The image of a node, made without a registry: Debian's packages, and programs built in Go.

kind's own ``build node-image`` makes it. What it takes is made here: a base image as kind's
Dockerfile would give, and an archive as a release of Kubernetes is one.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kind import programs
from tests.kind.cluster import BUILT_IMAGES
from tests.kind.docker import FILES, Daemon
from tests.kind.errors import ClusterError, NoDaemonError
from tests.kind.shell import run, succeeds
from tests.stack import build, places, timescale

CERT_MANAGER_VERSION = "v1.21.2"

CERT_MANAGER_IMAGES = {
    name: f"derops-test/cert-manager-{name}:{CERT_MANAGER_VERSION}"
    for name in ("controller", "webhook", "cainjector")
}

_REGISTRY_SECONDS = 15
_SUITE = "bookworm"
"""Its systemd runs on machines with control groups of version 1, that of trixie does not."""
_NODE_PACKAGES = (
    "bash", "ca-certificates", "conntrack", "containerd", "containernetworking-plugins", "curl",
    "e2fsprogs", "ethtool", "fuse-overlayfs", "ipset", "iproute2", "iptables", "jq", "kmod",
    "libseccomp2", "mount", "nftables", "openssl", "pigz", "procps", "runc", "socat", "systemd",
    "systemd-sysv", "util-linux",
)  # fmt: skip
_LEFT_OUT = (
    "var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale",
    "dev", "var/log",
)  # fmt: skip
_POD_PROGRAMS = (
    "usr/sbin/xtables-nft-multi", "usr/sbin/xtables-legacy-multi", "usr/sbin/nft",
    "usr/sbin/conntrack", "usr/sbin/ipset", "bin/sh", "bin/grep", "bin/sed", "bin/kmod",
    "bin/mkdir", "bin/rm", "bin/chmod",
)  # fmt: skip
"""What kube-proxy and the helper of local-path run."""

_KUBERNETES_PROGRAMS = (
    "etcd", "kubeadm", "kubectl", "kubelet", "kube-apiserver", "kube-controller-manager",
    "kube-scheduler", "kube-proxy",
)  # fmt: skip

# What kubeadm of our Kubernetes and kind of our version ask for.
_ETCD = "registry.k8s.io/etcd:3.6.8-0"
_COREDNS = "registry.k8s.io/coredns/coredns:v1.14.2"
_PAUSE = "registry.k8s.io/pause:3.10"
_STORAGE = "docker.io/kindest/local-path-provisioner:v20260820-69b56db7"
_STORAGE_HELPER = "docker.io/kindest/local-path-helper:v20260131-7181c60a"
_NETWORK = "docker.io/kindest/kindnetd:v20260820-69b56db7"
"""Named in kind's build and never run: its module cannot be had."""

_NODE_BASE = """\
FROM {root}
COPY kube /usr/local/lib/kube
ENV container=docker PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
"""
_CERT_MANAGER = """\
FROM {image}
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/{name}"]
"""
_LINK = '#!/bin/bash\nexec -a {name} /usr/local/lib/kube "$@"\n'


def choose(daemon: Daemon) -> str | None:
    """Have an image for a new node; None = kind shall pull its own, since a registry answers."""
    return None if can_pull(daemon) else have(daemon)


def have(daemon: Daemon) -> str:
    """Return the name of the node's image; make it first where the daemon does not have it."""
    kube = Path(build.binaries().controlplane)
    parts = {name: programs.built(name) for name in ("coredns", "local-path-provisioner", "pause")}
    image = f"{BUILT_IMAGES}:{build.KUBERNETES_VERSION}-{_fingerprint([kube, *parts.values()])}"
    with places.locked("kind-node"):
        if not daemon.succeeds("image", "inspect", image):
            print(f"building the image of a node, {image} (a minute or two)", flush=True)
            with _scratch() as scratch:
                _build(daemon, image, kube, parts, scratch)
            _forget_older(daemon, image)
    return image


def _fingerprint(built: Iterable[Path]) -> str:
    """Return a digest of all that the image is made of. Programs have theirs in their path."""
    digest = hashlib.sha256()
    for program in built:
        digest.update(f"{program.parent.name}\0".encode())
    for file in [Path(__file__), *sorted(FILES.iterdir())]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a directory on the disk of the cache: in memory the archives would be too large."""
    directory = places.cache() / "kind-node.part"
    shutil.rmtree(directory, ignore_errors=True)  # of one that was killed
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _build(daemon: Daemon, image: str, kube: Path, parts: dict[str, Path], scratch: Path) -> None:
    root = _node_root()
    kube_image = _import_kube(daemon, root / "pod", kube, scratch)
    for name, tag in CERT_MANAGER_IMAGES.items():
        dockerfile = _CERT_MANAGER.format(image=kube_image, name=name)
        _dockerfile(daemon, tag, dockerfile, scratch / name)
    _import_program(daemon, _COREDNS, parts["coredns"])
    _import_program(daemon, _STORAGE, parts["local-path-provisioner"])
    _import_program(daemon, _PAUSE, parts["pause"], "USER 65535:65535")
    daemon.docker("tag", _PAUSE, _NETWORK)
    version = build.KUBERNETES_VERSION
    shared = [_ETCD, _STORAGE_HELPER] + [
        f"registry.k8s.io/{name}:{version}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
    ]
    for tag in shared:
        daemon.docker("tag", kube_image, tag)
    images = [*shared, _COREDNS, _PAUSE, _STORAGE, _NETWORK, *CERT_MANAGER_IMAGES.values()]
    archive = _release(daemon, images, scratch)
    base = _base(daemon, root / "root.tar", kube, scratch)
    command: list[str | Path] = [
        programs.built("kind"), "build", "node-image", "--type=file", f"--base-image={base}",
        f"--image={image}", archive,
    ]  # fmt: skip
    run(command, environment=daemon.environment() | {"TMPDIR": str(scratch)})
    daemon.docker("rmi", "--no-prune", *images)  # they are in the node now


def _node_root() -> Path:
    """Return the directory with the root of a node, and of a pod that needs Debian's programs."""
    kind = programs.kind_files()
    digest = hashlib.sha256(f"{kind}{_SUITE}{_NODE_PACKAGES}{_LEFT_OUT}{_POD_PROGRAMS}".encode())
    for file in sorted(FILES.iterdir()):
        digest.update(file.read_bytes())
    target = places.cache() / f"kind-root-{digest.hexdigest()[:12]}"
    with places.locked("kind-root"):
        if target.exists():
            return target
        if os.getuid() != 0:
            raise NoDaemonError("only root can make the root of a node (debootstrap, chroot)")
        print(f"unpacking Debian {_SUITE} for the node (a minute or two)", flush=True)
        scratch = target.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        root = scratch / "root"
        root.mkdir(parents=True)
        _debootstrap(root)
        shutil.copytree(kind / "kind", root / "kind", copy_function=shutil.copyfile)
        for each in ("etc", "usr"):
            shutil.copytree(
                kind / each, root / each, copy_function=shutil.copyfile, dirs_exist_ok=True
            )
        for program in [*(root / "usr/local/bin").iterdir(), *(root / "kind/bin").iterdir()]:
            program.chmod(0o755)
        run(["chroot", root, "/bin/sh", "-eu"], stdin=(FILES / "prepare-node").read_bytes())
        _install(FILES / "runc-without-sys-resource", root / "usr/local/sbin/runc")
        _install(FILES / "ctr-of-containerd-1.6", root / "usr/local/bin/ctr")
        _copy_pod(root, scratch / "pod")
        left_out = [f"--exclude=./{path}/*" for path in _LEFT_OUT]
        archive: list[str | Path] = ["-cf", scratch / "root.tar", "--numeric-owner", *left_out, "."]
        run(["tar", "-C", str(root), *archive])
        shutil.rmtree(root)
        for older in places.cache().glob("kind-root-*"):
            if older != scratch:
                shutil.rmtree(older)
        scratch.rename(target)
    return target


def _debootstrap(root: Path) -> None:
    if shutil.which("debootstrap") is None:
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=600"]
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run([*apt, "update", "-q"], environment=quiet)
        run([*apt, "install", "-qy", "--no-install-recommends", "debootstrap"], environment=quiet)
    packages = ",".join(_NODE_PACKAGES)
    run(
        [
            "debootstrap", "--variant=minbase", f"--include={packages}", _SUITE, root,
            timescale.mirror(),
        ]
    )  # fmt: skip


def _install(source: Path, target: Path) -> None:
    """Put a program there; where a link is, in its place and not into what it leads to."""
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _copy_pod(root: Path, pod: Path) -> None:
    """Copy the programs that pods need, with their libraries, from the root of a node."""
    files = [Path(name) for name in _POD_PROGRAMS]
    for directory in root.glob("usr/lib/*/xtables"):
        files += [each.relative_to(root) for each in directory.glob("*.so")]
    for file in files:
        linked = subprocess.run(
            ["chroot", root, "ldd", f"/{file}"], capture_output=True, text=True, check=False
        ).stdout
        needed = [word for word in linked.split() if word.startswith("/")]
        for each in {str(file), *(path.lstrip("/") for path in needed)}:
            target = pod / each
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(root / each, target)
    for name in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            (pod / "usr/sbin" / f"{name}{suffix}").symlink_to("xtables-nft-multi")
    (pod / "bin/modprobe").symlink_to("kmod")
    (pod / "etc").mkdir()
    (pod / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    shutil.copy(root / "etc/nsswitch.conf", pod / "etc")
    for name in ("run", "var/run", "tmp"):
        (pod / name).mkdir(parents=True)
    (pod / "tmp").chmod(0o1777)


def _import_kube(daemon: Daemon, pod: Path, kube: Path, scratch: Path) -> str:
    """Make the image of all that is Kubernetes or cert-manager: one program of many names."""
    image = f"derops/kube:{build.KUBERNETES_VERSION}"
    root = scratch / "kube"
    shutil.copytree(pod, root, symlinks=True)
    programs_directory = root / "usr/local/bin"
    programs_directory.mkdir(parents=True)
    shutil.copy(kube, programs_directory / "kube")
    for name in (*_KUBERNETES_PROGRAMS, *CERT_MANAGER_IMAGES):
        (programs_directory / name).symlink_to("kube")
    path = "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _import(daemon, image, ["-C", root, "."], path)
    shutil.rmtree(root)
    return image


def _import_program(daemon: Daemon, image: str, program: Path, *changes: str) -> None:
    """Make an image of one program and nothing else."""
    entry = f'ENTRYPOINT ["/{program.name}"]'
    _import(daemon, image, ["-C", program.parent, program.name], entry, "ENV PATH=/", *changes)


def _import(daemon: Daemon, image: str, what: list[str | Path], *changes: str) -> None:
    options = [option for change in changes for option in ("--change", change)]
    tar = ["tar", "-c", "--numeric-owner", "--owner=0", "--group=0", "--mtime=@0", "--sort=name"]
    with subprocess.Popen([*tar, *map(str, what)], stdout=subprocess.PIPE) as process:
        done = subprocess.run(
            ["docker", "import", *options, "-", image],
            stdin=process.stdout,
            env=os.environ | daemon.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or process.returncode:
        raise ClusterError(f"docker import {image} failed\n{done.stderr}")


def _dockerfile(daemon: Daemon, image: str, text: str, context: Path) -> None:
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(text)
    command: list[str | Path] = ["docker", "build", "--quiet", f"--tag={image}", context]
    run(command, environment=daemon.environment() | {"DOCKER_BUILDKIT": "0"})


def _base(daemon: Daemon, root: Path, kube: Path, scratch: Path) -> str:
    """Make what kind calls the base image: a system with containerd, and no Kubernetes."""
    names = ("derops/kind-root:dev", "derops/kind-base:dev")
    daemon.docker("import", str(root), names[0])
    context = scratch / "base"
    context.mkdir()
    shutil.copy(kube, context / "kube")
    _dockerfile(daemon, names[1], _NODE_BASE.format(root=names[0]), context)
    shutil.rmtree(context)
    return names[1]


def _release(daemon: Daemon, images: list[str], scratch: Path) -> Path:
    """Write what kind takes for a release of Kubernetes: programs, and archives of images.

    Of an archive kind reads the first of its two tables of contents, and of the one that lists all
    of Docker's only the first image: so the other one goes first.
    """
    folder = scratch / "release" / "kubernetes"
    bin_folder = folder / "server" / "bin"
    bin_folder.mkdir(parents=True)
    (folder / "version").write_text(build.KUBERNETES_VERSION)
    for name in ("kubeadm", "kubelet", "kubectl"):
        (bin_folder / name).write_text(_LINK.format(name=name))
        (bin_folder / name).chmod(0o755)
    saved = scratch / "images.tar"
    daemon.docker("save", "-o", str(saved), *images)
    with (
        tarfile.open(saved) as source,
        tarfile.open(bin_folder / "kube-apiserver.tar", "w") as target,
    ):
        for member in sorted(source.getmembers(), key=lambda each: each.name != "repositories"):
            target.addfile(member, source.extractfile(member) if member.isreg() else None)
    saved.unlink()
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        daemon.docker("save", "-o", str(bin_folder / f"{name}.tar"), _PAUSE)
    archive = scratch / "release.tgz"
    with tarfile.open(archive, "w:gz", compresslevel=0) as release:
        release.add(folder, "kubernetes")
    shutil.rmtree(folder.parent)
    return archive


def _forget_older(daemon: Daemon, image: str) -> None:
    """Remove images of nodes that no cluster uses."""
    listed = daemon.docker("image", "ls", "--format={{.Repository}}:{{.Tag}}", BUILT_IMAGES)
    for older in set(listed.split()) - {image}:
        daemon.succeeds("rmi", older)


def can_pull(daemon: Daemon) -> bool:
    """Tell whether a registry has images for this machine; DEROPS_CLUSTER_NODE decides otherwise.

    Raises:
        ClusterError: The setting is not one of its words.
    """
    asked = os.environ.get("DEROPS_CLUSTER_NODE", "")
    if asked not in ("", "pulled", "built"):
        raise ClusterError(f"DEROPS_CLUSTER_NODE is {asked!r}, not pulled, built or empty")
    if asked:
        return asked == "pulled"
    return succeeds(
        ["docker", "manifest", "inspect", "registry.k8s.io/pause:3.10"],
        environment=daemon.environment(),
        timeout_seconds=_REGISTRY_SECONDS,
    )
