"""The bill of materials says what is in the image, and the same of the same image."""

import json
from pathlib import Path
from typing import Any

import pytest
from images.archives import Image, read_image
from images.commands import ImagesError
from images.sbom import CONTENT_READ, bill_of_materials
from tests.images.archive import write_archive

_CONTENTS = {
    "opt/derops/lib/derops-0.1.0.dist-info/METADATA": "Name: derops\nVersion: 0.1.0\n\nlong text",
    "opt/derops/lib/Some_Thing-2.dist-info/METADATA": "Name: Some_Thing\nVersion: 2\n",
    "usr/lib/os-release": 'VERSION_ID="13"\n',
    "var/lib/dpkg/status": (
        "Package: libx\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2+b1\n\n"
    ),
    "usr/local/include/python3.13/patchlevel.h": '#define PY_VERSION  "3.13.7"\n',
}


def _image(tmp_path: Path, contents: dict[str, str] = _CONTENTS) -> Image:
    return read_image(write_archive(tmp_path / "image.tar", [], contents), *CONTENT_READ)


def _locked(*names: str, serial: str = "1") -> str:
    components = [
        {"type": "library", "bom-ref": f"{name}-1@2", "name": name, "version": "2"}
        for name in names
    ]
    return json.dumps(
        {
            "serialNumber": serial,
            "metadata": {"component": {"bom-ref": "derops-0@0.1.0"}, "timestamp": serial},
            "components": components,
            "dependencies": [
                {"ref": "derops-0@0.1.0", "dependsOn": [each["bom-ref"] for each in components]}
            ],
        }
    )


def _bill(image: Image, locked: str) -> dict[str, Any]:
    text = bill_of_materials(image, locked, "derops/agent", "0.1.0", "amd64")
    bill: dict[str, Any] = json.loads(text)
    return bill


def test_it_lists_packages_of_python_of_debian_and_python_itself(tmp_path: Path) -> None:
    bill = _bill(_image(tmp_path), _locked("some-thing"))

    found = {component["name"]: component["version"] for component in bill["components"]}
    assert found == {"derops": "0.1.0", "some-thing": "2", "libx": "1:2+b1", "python": "3.13.7"}
    purls = {component.get("purl") for component in bill["components"]}
    assert "pkg:deb/debian/libx@1%3A2%2Bb1?arch=amd64&distro=debian-13" in purls


def test_what_the_lock_has_for_other_platforms_is_left_out(tmp_path: Path) -> None:
    bill = _bill(_image(tmp_path), _locked("some-thing", "for-windows"))

    assert "for-windows" not in json.dumps(bill)


def test_a_package_that_the_lock_does_not_know_ends_the_build(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="some-thing"):
        _bill(_image(tmp_path), _locked())


def test_the_same_image_has_the_same_bill_whenever_it_is_made(tmp_path: Path) -> None:
    image = _image(tmp_path)

    first = _bill(image, _locked("some-thing", serial="1"))
    assert first == _bill(image, _locked("some-thing", serial="2"))
    assert first["metadata"]["timestamp"] == "2026-01-02T03:04:05Z"


def test_another_image_has_another_serial_number(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_archive(
        tmp_path / "other" / "image.tar", [], _CONTENTS, {"created": "2026-01-02T03:04:06Z"}
    )

    locked = _locked("some-thing")
    serials = {
        _bill(image, locked)["serialNumber"]
        for image in (_image(tmp_path), read_image(other, *CONTENT_READ))
    }
    assert len(serials) == 2
