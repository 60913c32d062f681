"""Kubeconfig files and calls of kubectl with them."""

import base64
import json
import os
import subprocess
from pathlib import Path

from tests.pki import Leaf
from tests.stack.processes import StackError


def write(file: Path, server: str, authority: bytes, user: dict[str, str]) -> str:
    """Write a kubeconfig of one user and return its path. JSON is YAML."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "derops",
        "contexts": [{"name": "derops", "context": {"cluster": "derops", "user": "derops"}}],
        "clusters": [
            {
                "name": "derops",
                "cluster": {"server": server, "certificate-authority-data": _base64(authority)},
            }
        ],
        "users": [{"name": "derops", "user": user}],
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps(document, indent=2))
    return str(file)


def certificate_user(leaf: Leaf) -> dict[str, str]:
    """Return a user who shows a client certificate."""
    return {
        "client-certificate-data": _base64(leaf.pem),
        "client-key-data": _base64(leaf.key),
    }


def kubectl(program: str, kubeconfig: str, *arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and return what it printed.

    Raises:
        StackError: kubectl failed; the message has what it said.
    """
    done = subprocess.run(
        [program, *arguments],
        env=os.environ | {"KUBECONFIG": kubeconfig},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
