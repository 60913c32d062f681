"""A token for the API: given, made for a ServiceAccount, or that with which kubectl logs in."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from derops_cli.deadline import Deadline
from derops_cli.errors import UsageError
from derops_cli.evidence import Missing
from derops_cli.kubectl import Kubectl

AUDIENCE = "derops-api"
_EXEC_INFO = "KUBERNETES_EXEC_INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """How the caller logs in to the API; at most one of them."""

    token: str | None = None
    """The token, or ``@`` and a file."""

    service_account: str | None = None
    """Namespace and name, with a slash between."""

    kubectl: bool = False
    """By the token with which kubectl itself logs in."""

    @property
    def wanted(self) -> bool:
        """Whether access to the API was asked for."""
        return self.kubectl or self.token is not None or self.service_account is not None

    def check(self) -> None:
        """Check that the ways do not contradict each other, and read as they should.

        Raises:
            UsageError: They do not.
        """
        ways = [self.token is not None, self.service_account is not None, self.kubectl]
        if sum(ways) > 1:
            raise UsageError("--token, --as-service-account and --login: choose one of them")
        if self.service_account is not None and self.service_account.strip("/").count("/") != 1:
            raise UsageError(
                f"--as-service-account is {self.service_account!r}: it is NAMESPACE/NAME"
            )
        if self.token is not None and self.token.startswith("@"):
            _read_file(self.token[1:])
        elif self.token is not None and not _is_token(self.token):
            raise UsageError("--token is empty, or has what no token has: give it as @FILE")

    def have_token(self, kubectl: Kubectl, deadline: Deadline) -> str | Missing:
        """Return the token."""
        if self.token is not None:
            return _read_file(self.token[1:]) if self.token.startswith("@") else self.token
        if self.service_account is not None:
            namespace, name = self.service_account.strip("/").split("/")
            made = kubectl.run("create", "token", name, "-n", namespace, f"--audience={AUDIENCE}")
            if isinstance(made, Missing):
                return Missing(f"token of {self.service_account}", made.why, made.right)
            return made.strip()
        return _kubectls_token(kubectl, deadline)


def _read_file(path: str) -> str:
    file = Path(path)
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--token: {file} cannot be read: {error}") from error
    if not _is_token(token):
        raise UsageError(f"--token: {file} holds no token")
    return token


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _kubectls_token(kubectl: Kubectl, deadline: Deadline) -> str | Missing:
    what = "token of kubectl"
    shown = kubectl.run("config", "view", "--raw", "--minify", "-o", "json")
    if isinstance(shown, Missing):
        return Missing(what, shown.why)
    config = json.loads(shown)
    users: list[dict[str, Any]] = config.get("users") or [{}]
    user: Mapping[str, Any] = users[0].get("user") or {}
    if user.get("token"):
        return str(user["token"])
    plugin = user.get("exec")
    if not plugin:
        return Missing(what, "kubectl logs in without a token, by a certificate or the like")
    return _run_plugin(plugin, deadline)


def _run_plugin(plugin: Mapping[str, Any], deadline: Deadline) -> str | Missing:
    """Run a credential plugin as kubectl does, and return its token."""
    what = f"token of kubectl's plugin {plugin['command']}"
    environment = {each["name"]: each["value"] for each in plugin.get("env") or ()}
    environment[_EXEC_INFO] = json.dumps(
        {
            "apiVersion": plugin["apiVersion"],
            "kind": "ExecCredential",
            "spec": {"interactive": False},
        }
    )
    try:
        done = subprocess.run(  # noqa: S603  # what kubectl runs as well
            [plugin["command"], *(plugin.get("args") or ())],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline.left(),
            check=True,
        )
        token = json.loads(done.stdout)["status"]["token"]
    except (OSError, subprocess.SubprocessError) as error:
        return Missing(what, f"it failed: {type(error).__name__}")
    except (ValueError, KeyError, TypeError):
        return Missing(what, "it printed no token")
    return str(token)
