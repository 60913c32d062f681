"""Makes what is generated for the chart, and from it.

- ``chart.py generate``: copy CRDs and SQL into the chart, write the values into its README
- ``chart.py install-yaml FILE [VALUES]``: render the chart as manifests for ``kubectl apply``
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = REPOSITORY / "charts" / "derops"
CRDS = CHART / "files" / "crds"
README = CHART / "README.md"
ROLES = CHART / "files" / "database-roles.sql"
PRINTED_ROLES = REPOSITORY / "headend" / "derops_headend" / "storage" / "roles.sql"
"""What ``derops-headend database roles`` prints."""

PILOT = CHART / "ci" / "pilot-values.yaml"
NAMESPACE = "derops-system"
MARKS = ("<!-- values: made by make generate -->", "<!-- end of values -->")

NAMESPACE_MANIFEST = f"""apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    app.kubernetes.io/name: derops
    pod-security.kubernetes.io/enforce: restricted
"""


def crds() -> dict[str, bytes]:
    """Return the definitions as they are applied without the chart, by file name."""
    return {file.name: file.read_bytes() for file in sorted((REPOSITORY / "crds").glob("*.yaml"))}


def values_table() -> str:
    """Return a table of all values with their defaults and what their comments say.

    Raises:
        ValueError: A value has no comment.
    """
    rows = ["| value | default | meaning |", "| --- | --- | --- |"]
    for name, default, meaning in _values():
        rows.append(f"| `{name}` | `{default}` | {meaning} |")
    return "\n".join(rows)


def _values() -> Iterator[tuple[str, str, str]]:
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    defaults = yaml.safe_load(text)
    path: list[str] = []
    comment = ""
    for number, line in enumerate(text.splitlines(), 1):
        if said := re.match(r" *# -- (.+)", line):
            comment = said[1]
            continue
        if not (key := re.match(r"( *)([A-Za-z]+):(.*)", line)):
            continue
        path[len(key[1]) // 2 :] = [key[2]]
        if comment:
            yield ".".join(path), _default(defaults, path), comment
            comment = ""
        elif key[3].strip() and not any(part == "resources" for part in path):
            raise ValueError(f"values.yaml:{number}: {'.'.join(path)} has no comment '# -- …'")


def _default(defaults: Any, path: list[str]) -> str:
    value = defaults
    for part in path:
        value = value[part]
    return json.dumps(value, separators=(", ", ": "))


def readme() -> str:
    """Return the chart's README with the table as it should be."""
    before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{values_table()}\n\n{MARKS[1]}{after}"


def generate() -> None:
    """Write what is made for the chart."""
    CRDS.mkdir(exist_ok=True)
    for file in CRDS.iterdir():
        file.unlink()
    for name, content in crds().items():
        (CRDS / name).write_bytes(content)
    shutil.copyfile(PRINTED_ROLES, ROLES)
    README.write_text(readme(), encoding="utf-8")


def render(values: dict[str, Any]) -> str:
    """Return what the chart renders, by helm, or by the control plane of the tests."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    version = chart["kubeVersion"].removeprefix(">=").removesuffix("-0")
    if helm := shutil.which("helm"):
        command = [helm, "template", "derops", str(CHART), "--values=-"]
    else:
        from tests.stack import build  # so that nobody with helm builds it

        program = build.binaries().controlplane
        command = [str(program), "render-chart", f"--chart={CHART}", "--release=derops"]
        command.append(f"--values={json.dumps(values)}")
    sys.stderr.write(f"rendered by {command[0]}\n")
    done = subprocess.run(  # noqa: S603
        [*command, f"--namespace={NAMESPACE}", f"--kube-version={version}"],
        input=json.dumps(values), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout


def install_yaml(values: dict[str, Any], rendered: str) -> str:
    """Return manifests that are applied in one go, from what the chart renders.

    Namespace and CRDs come first. Hooks are left out: nobody would run them at their time.
    """
    documents = [
        document
        for each in re.split(r"^---$", rendered, flags=re.MULTILINE)
        if (document := _plain(each)) and "\n    helm.sh/hook: " not in document
    ]
    documents.sort(key=lambda each: "\nkind: CustomResourceDefinition\n" not in each)
    return "---\n".join([_header(documents, values) + NAMESPACE_MANIFEST, *documents])


def _plain(document: str) -> str:
    """Return a document without what only helm reads."""
    lines = [
        line.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl")
        for line in document.strip("\n").splitlines()
        if not line.startswith(("# Source: ", "    helm.sh/chart: ")) and line.strip()
    ]
    return "\n".join(lines) + "\n" if any(not line.startswith("#") for line in lines) else ""


def _header(documents: list[str], values: dict[str, Any]) -> str:
    objects = [yaml.safe_load(each) for each in documents]
    kinds: dict[str, list[str]] = {}
    for each in objects:
        kinds.setdefault(each["kind"], []).append(each["metadata"]["name"])
    images = sorted(set(re.findall(r"^ +image: \"?([^\s\"]+)", "\n".join(documents), re.MULTILINE)))
    lines = [
        "derops, rendered from charts/derops. Needs cert-manager, with approveSignerNames",
        "[issuers.cert-manager.io/*]. Install, and once more whenever it changes:",
        "",
        "  kubectl apply --server-side -f install.yaml",
        "",
        f"Values: {json.dumps(values)}",
        f"Images: {', '.join(images)}",
        "It holds no Secret and no password. Objects, beside the namespace:",
        *(f"  {kind}: {', '.join(sorted(set(names)))}" for kind, names in sorted(kinds.items())),
        "",
        "Before it is deleted: docs/how-to/uninstall.md.",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def main() -> None:
    """Do what the arguments say."""
    match sys.argv[1:]:
        case ["generate"]:
            generate()
        case ["install-yaml", target, *files] if len(files) < 2:
            given = Path(files[0]) if files and files[0] else PILOT
            values = yaml.safe_load(given.read_text(encoding="utf-8")) or {}
            try:
                text = install_yaml(values, render(values))
            except ValueError as error:
                sys.exit(str(error))
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_text(text, encoding="utf-8")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
