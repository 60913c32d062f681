"""The bill of materials of an image: what it holds, by name, version and origin.

The image says what is in it: the packages of Python by their dist-info, those of Debian by dpkg's
list. uv.lock adds where each package of Python came from, with its hash. Image and lock must agree.
"""

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any

from images.archives import Image
from images.commands import ImagesError

CONTENT_READ = ("/METADATA", "var/lib/dpkg/status", "/patchlevel.h", "usr/lib/os-release")
"""What ``read_image`` must read for it."""


def bill_of_materials(image: Image, locked: str, name: str, version: str, arch: str) -> str:
    """Return the bill in CycloneDX's JSON; the same image gives the same text."""
    lock = json.loads(locked)
    installed = _python_packages(image)
    components = [  # a lock has other versions for other versions of Python
        component
        for component in lock["components"]
        if installed.get(_normal(component["name"])) == component["version"]
    ]
    listed = {_normal(component["name"]): component["version"] for component in components}
    own = {"derops": installed.get("derops", "")}
    if listed | own != installed:
        raise ImagesError(f"the image holds {installed}, but uv.lock chose {listed}")
    kept = {component["bom-ref"] for component in components}
    reference = f"{name}@{version}"
    own_reference = lock["metadata"]["component"]["bom-ref"]
    dependencies = [
        {
            "ref": item["ref"],
            "dependsOn": [other for other in item.get("dependsOn", []) if other in kept],
        }
        for item in lock.get("dependencies", [])
        if item["ref"] in kept | {own_reference}
    ]
    own_component = {
        "type": "library",
        "bom-ref": own_reference,
        "name": "derops",
        "version": own["derops"],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    system = _python(image) + _debian_packages(image, arch)
    dependencies.insert(
        0, {"ref": reference, "dependsOn": [own_reference, *(item["bom-ref"] for item in system)]}
    )
    created = datetime.fromisoformat(image.config["created"]).astimezone(UTC)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, image.digest)}",
        "version": 1,
        "metadata": {
            "timestamp": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "container",
                "bom-ref": reference,
                "name": name,
                "version": version,
                "properties": [
                    {"name": "derops:image:digest", "value": image.digest},
                    {"name": "derops:image:architecture", "value": arch},
                ],
            },
        },
        "components": [own_component, *components, *system],
        "dependencies": dependencies,
    }
    return json.dumps(bill, indent=2) + "\n"


def _python_packages(image: Image) -> dict[str, str]:
    """Return name and version of each package of Python in the image."""
    packages = {}
    for path, entry in image.entries.items():
        if path.endswith(".dist-info/METADATA"):
            fields = entry.content.decode().partition("\n\n")[0]
            packages[_normal(_field(fields, "Name"))] = _field(fields, "Version")
    return packages


def _python(image: Image) -> list[dict[str, Any]]:
    """Return the Python of an official python image, which is no package of Debian."""
    for path, entry in image.entries.items():
        if path.startswith("usr/local/include/python3") and path.endswith("/patchlevel.h"):
            found = re.search(r'PY_VERSION\s+"([^"]+)"', entry.content.decode())
            if found:
                purl = f"pkg:generic/python@{found[1]}"
                return [_component("application", "python", found[1], purl)]
    return []


def _debian_packages(image: Image, arch: str) -> list[dict[str, Any]]:
    status = image.entries.get("var/lib/dpkg/status")
    if status is None:
        return []
    release = image.entries["usr/lib/os-release"].content.decode()
    distribution = re.search(r"^VERSION_ID=\"?([^\"\n]+)", release, re.MULTILINE)
    suffix = f"&distro=debian-{distribution[1]}" if distribution else ""
    components = []
    for stanza in status.content.decode().strip().split("\n\n"):
        name, version = _field(stanza, "Package"), _field(stanza, "Version")
        purl = f"pkg:deb/debian/{name}@{version.replace(':', '%3A').replace('+', '%2B')}"
        where = f"?arch={_field(stanza, 'Architecture') or arch}{suffix}"
        components.append(_component("library", name, version, purl + where))
    return sorted(components, key=lambda component: str(component["name"]))


def _component(kind: str, name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _field(fields: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", fields, re.MULTILINE)
    return found[1].strip() if found else ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
