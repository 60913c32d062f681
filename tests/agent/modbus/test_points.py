"""Values in registers of devices without SunSpec."""

from typing import Any

import pytest
from pydantic import ValidationError

from derops.errors import DeviceRefusedError
from derops_agent.drivers.modbus.points import Point


def point(**keys: Any) -> Point:
    return Point.model_validate({"address": 10, "type": "int16", **keys})


@pytest.mark.parametrize(
    ("keys", "value", "registers"),
    [
        ({}, -2, "fffe"),
        ({"type": "uint16", "scale": 10}, 50, "0005"),
        ({"sign": -1}, 5, "fffb"),
        ({"type": "int32"}, 65538, "00010002"),
        ({"type": "int32", "wordOrder": "little"}, 65538, "00020001"),
        ({"type": "uint32"}, 4294967295, "ffffffff"),
        ({"type": "float32", "wordOrder": "little"}, 1.5, "00003fc0"),
        ({"scale": 0.1}, 0.3, "0003"),
        ({"byteOrder": "little"}, 1, "0100"),
        ({"type": "int32", "byteOrder": "little", "wordOrder": "little"}, 0x01020304, "04030201"),
        ({"type": "int64", "wordOrder": "little"}, -2, "fffeffffffffffff"),
        ({"type": "uint64"}, 2**40, "0000010000000000"),
        ({"type": "float64"}, -0.5, "bfe0000000000000"),
    ],
)
def test_a_value_and_its_registers(keys: dict[str, Any], value: float, registers: str) -> None:
    assert point(**keys).encode(value).hex() == registers
    assert point(**keys).decode(bytes.fromhex(registers)) == pytest.approx(value)


@pytest.mark.parametrize(("value", "registers"), [(59, "0005"), (-59, "fffb")])
def test_a_limit_is_never_rounded_up(value: float, registers: str) -> None:
    assert point(scale=10).encode(value).hex() == registers


@pytest.mark.parametrize(
    ("kind", "value"), [("int16", 32768), ("uint16", -1), ("uint32", 2**32), ("float32", 1e39)]
)
def test_what_a_register_cannot_hold_is_refused(kind: str, value: float) -> None:
    with pytest.raises(DeviceRefusedError, match=f"register 10: .* {kind} cannot hold"):
        point(type=kind).encode(value)


def test_an_answer_that_is_no_number_names_its_bytes() -> None:
    with pytest.raises(DeviceRefusedError, match="0x7fc00000, no number"):
        point(type="float32").decode(bytes.fromhex("7fc00000"))


@pytest.mark.parametrize(
    "keys",
    [
        {"address": 65536},
        {"address": 65535, "type": "int32"},
        {"address": 65533, "type": "float64"},
        {"scale": 0},
        {"type": "int8"},
        {"sign": 2},
        {"adress": 1},
    ],
)
def test_a_wrong_point_is_not_taken(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        point(**keys)
