"""``python -m tests.kind up|down|status|images``, as ``make cluster`` and ``make down`` call it."""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.kind import certmanager, docker, images, nodeimage, programs, versions
from tests.kind.cluster import DEFAULT_NAME, Cluster, all_names, delete, name
from tests.kind.errors import ClusterError, NoDaemonError
from tests.kind.shell import alone, run
from tests.kind.state import FILE, current, read, write
from tests.stack import build, places
from tests.stack.processes import StackError

_NO_DAEMON = 3


def main() -> int:
    """Run one command and return the exit code; 3 = no Docker daemon can be had."""
    parser = argparse.ArgumentParser(prog="python -m tests.kind", description=__doc__)
    commands: dict[str, Callable[[Path], None]] = {
        "up": up,
        "down": down,
        "status": status,
        "images": load_images,
    }
    parser.add_argument("command", choices=commands)
    parser.add_argument(
        "--state", type=Path, default=places.BUILD, help="directory of cluster.json and images"
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        arguments = parser.parse_args()
        commands[arguments.command](arguments.state.resolve())
    except NoDaemonError as error:
        print(f"error: {error}", file=sys.stderr)
        return _NO_DAEMON
    except (ClusterError, StackError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def up(build_directory: Path) -> None:
    """Have a cluster with cert-manager and our images, and say how to use it."""
    if (given := os.environ.get("KUBECONFIG")) and not _is_ours(given):
        _use(given, build_directory)
    else:
        _have(build_directory)
    status(build_directory)


def _is_ours(kubeconfig: str) -> bool:
    """Tell whether KUBECONFIG is set to a cluster that we made: then it is no order to use it."""
    return Path(kubeconfig).parent == places.cache() / "clusters"


def _use(given: str, build_directory: Path) -> None:
    """Use the cluster that KUBECONFIG names."""
    print(f"cluster: the one of KUBECONFIG={given}; unset it to have one made", flush=True)
    files = [Path(each).absolute() for each in given.split(os.pathsep) if each]
    if len(files) != 1 or not files[0].is_file():
        raise ClusterError(f"KUBECONFIG is {given}, not the path of one file that is there")
    with alone():
        tools = certmanager.Tools(_kubectl(), programs.have("helm"), files[0])
        versions.check(versions.of_server(tools.kubectl, files[0]))
        nodes = ["get", "nodes", "--output=jsonpath={.items[*].metadata.name}"]
        if not run(tools.kubectl_command(*nodes)).strip():
            raise ClusterError(f"the cluster of {given} has no nodes: nothing could run in it")
        certmanager.ensure(tools, own_images=False)
        print("images: have them where this cluster can pull them; docs/development/cluster.md")
        write(build_directory, tools, None)


def _have(build_directory: Path) -> None:
    """Have a cluster of kind."""
    cluster_name = name()
    with alone():
        daemon = docker.have()
        cluster = Cluster(cluster_name, daemon, programs.have("kind"), _kubectl())
        built = cluster.ensure(
            lambda: None if nodeimage.can_pull(daemon) else nodeimage.have(daemon)
        )
        tools = certmanager.Tools(cluster.kubectl, programs.have("helm"), cluster.kubeconfig)
        certmanager.ensure(tools, own_images=built)
        write(build_directory, tools, cluster)
        images.load(cluster, build_directory / "images")


def _kubectl() -> Path:
    """Return a kubectl; one on PATH that is too old for the API server would warn at each call."""
    found = shutil.which("kubectl")
    if found and versions.fits(versions.of_client(found), build.KUBERNETES_VERSION):
        return Path(found)
    return Path(build.binaries().kubectl)


def down(build_directory: Path) -> None:
    """End the cluster, and our own daemon with the last one on it."""
    state = read(build_directory) or {}
    (build_directory / FILE).unlink(missing_ok=True)
    if state and state["kind"] is None:
        print(f"cluster: the one of {state['kubeconfig']} stays, it is not ours", flush=True)
        return
    wanted = os.environ.get("DEROPS_CLUSTER") or state.get("kind") or DEFAULT_NAME
    with alone():
        daemon = docker.find() or docker.wake()
        if daemon:
            if wanted in all_names(daemon):
                print(f"cluster {wanted}: ending", flush=True)
                delete(daemon, wanted)
            if left := all_names(daemon):
                print(f"docker: stays, with the clusters {', '.join(left)}", flush=True)
                return
        if docker.stop():
            print("docker: our daemon has ended", flush=True)


def status(build_directory: Path) -> None:
    """Say what there is and how to use it."""
    if (state := read(build_directory)) is None:
        raise ClusterError("no cluster; have one with: make cluster")
    print(f"{build_directory / FILE} says how to use the cluster. To look around:\n")
    if state["dockerHost"]:
        print(f"  export DOCKER_HOST={state['dockerHost']}")
    print(f"  export KUBECONFIG={state['kubeconfig']}")
    print(f"  {state['kubectl']} get pods -A\n\nEnd it with: make down")


def load_images(build_directory: Path) -> None:
    """Load what ``make images`` built since into the cluster."""
    with alone():
        images.load(current(build_directory), build_directory / "images")


if __name__ == "__main__":
    sys.exit(main())
