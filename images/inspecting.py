"""Finds what does not belong in an image. ``make images`` hands out no image that has any of it."""

import re
import stat
from collections.abc import Iterator

from images.archives import Entry, Image

UID_GID = "65532:65532"

_PROGRAMS = ("operator", "headend", "agent")

_FORBIDDEN = re.compile(
    r"""
      (^|/)\.(git|venv|cache|env|ssh|netrc|pypirc|npmrc|pgpass|docker|kube|aws|gnupg)(/|$)
    | (^|/)(direct_url\.json|uv_cache\.json|pip\.conf|uv\.toml|credentials\.json|known_hosts)$
    | (^|/)id_(rsa|dsa|ecdsa|ed25519)(\.pub)?$
    | (^|/)(.*_history|.*\.(orig|rej|swp|log|key|p12|kubeconfig))$
    | ^opt/derops/.*/tests?(/|$) | (^|/)conftest\.py$ | (^|/)test_[^/]*\.py$
    | (^|/)s?bin/(gcc|g\+\+|cc|c\+\+|clang|ld|as|make|cmake|rustc|cargo|go|cython)(-\d+)?$
    | (^|/)s?bin/(pip|uv|uvx|easy_install|poetry|conda)[\d.]*$
    | (^|/)site-packages/pip(-|/|$)
    | ^usr/s?bin/(apt|apt-get|dpkg|curl|wget|ssh|scp|nc|su|sudo|mount|umount|passwd)$
    | ^(root|tmp|var/tmp|var/cache|var/log|home|run|media|mnt|srv|build|work)/.
    | ^(slim\.py|Dockerfile)$
    | ^etc/(shadow|apt)
    """,
    re.VERBOSE,
)


def findings(image: Image, program: str, arch: str, python_minor: str) -> list[str]:
    """Return what does not belong in the image of a program, one line each."""
    found = (
        [f"is for {image.config['architecture']}"] if image.config["architecture"] != arch else []
    )
    found += _of_config(image)
    for entry in image.entries.values():
        found += _of_entry(entry, program, python_minor)
    packages = {path for path in image.entries if re.fullmatch(r"opt/derops/lib/derops\w*", path)}
    if packages != {"opt/derops/lib/derops", f"opt/derops/lib/derops_{program}"}:
        found.append(f"packages of ours: {sorted(packages)}")
    return found


def _of_config(image: Image) -> Iterator[str]:
    config = image.config["config"]
    if config.get("User") != UID_GID:
        yield f"runs as {config.get('User')!r}, not {UID_GID}"
    if config.get("Volumes") or config.get("ExposedPorts"):
        yield "declares volumes or ports, which are the manifests' to say"
    names = {variable.partition("=")[0] for variable in config.get("Env", [])}
    secret = [name for name in names if re.search("TOKEN|PASSWORD|SECRET|KEY|PROXY", name.upper())]
    if secret:
        yield f"environment that looks private: {secret}"


def _of_entry(entry: Entry, program: str, python_minor: str) -> Iterator[str]:
    path, info = entry.path, entry.info
    if _FORBIDDEN.search(path):
        yield f"{path} does not belong in an image"
    if info.mode & (stat.S_ISUID | stat.S_ISGID) and not info.issym():
        yield f"{path} has mode {info.mode:o}"
    world = info.mode & stat.S_IWOTH and not info.mode & stat.S_ISVTX
    if world and not info.issym():
        yield f"{path} may be written by anybody"
    if info.uid or info.gid:
        yield f"{path} belongs to {info.uid}:{info.gid}"
    if info.ischr() or info.isblk():
        yield f"{path} is a device"
    tag = f".cpython-{python_minor.replace('.', '')}."
    if path.endswith(".pyc") and tag not in path:
        yield f"{path} is no bytecode of Python {python_minor}"
    others = [other for other in _PROGRAMS if other != program]
    if any(re.search(rf"(^|/)derops[-_]{other}(/|$)", path) for other in others):
        yield f"{path} is of another program"
