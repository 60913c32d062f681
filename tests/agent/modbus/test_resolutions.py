"""What a profile says that registers hold, against what their bytes mean: every type and order."""

from dataclasses import dataclass
from math import isclose
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derops.errors import DeviceRefusedError
from derops_agent.drivers.modbus.controls import Rated, held, plan, resolutions_of
from derops_agent.drivers.modbus.image import Image
from derops_agent.drivers.modbus.profile import Control, Profile
from derops_agent.ports import Resolution, Setpoints, whole_watts

TYPES = ("int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
FIELDS = {
    "activePower": "active_power_watts",
    "generationLimit": "max_generation_watts",
    "loadLimit": "max_load_watts",
}
ENABLE, VALUE = 1, 10
FLOAT32 = 2**-23


@dataclass(frozen=True)
class Case:
    name: str
    section: dict[str, Any]
    rated: Rated
    watts: int

    @property
    def profile(self) -> Profile:
        return Profile.model_validate(
            {
                "name": "Any",
                "ratings": {"maxInjectionWatts": {"watts": 1}},
                "controls": {self.name: self.section},
            }
        )

    @property
    def control(self) -> Control:
        (control,) = self.profile.controls.values().values()
        return control

    @property
    def resolution(self) -> Resolution:
        (resolution,) = resolutions_of(self.profile, self.rated).values()
        return resolution

    @property
    def asked(self) -> Setpoints:
        fields: dict[str, Any] = {FIELDS[self.name]: self.watts}
        return Setpoints(**fields)

    def write(self) -> Image:
        """Return the registers after the driver's writes."""
        before = Image({("holding", ENABLE): bytes(2), ("holding", VALUE): bytes(8)})
        writes, _ = plan(self.profile, self.rated, before, self.asked, None)
        return Image({("holding", at): data for at, data in writes})

    def means_watts(self, image: Image) -> float:
        point = self.control.value
        number = point.decode(image.data(point))
        if self.control.unit == "watts":
            return number
        out, into = self.rated.max_injection_watts, self.rated.max_absorption_watts
        most = {"generationLimit": out, "loadLimit": into}.get(self.name, max(out, into))
        return number / 100 * most


@st.composite
def cases(draw: st.DrawFn) -> Case:
    scale = draw(
        st.sampled_from([0.01, 0.1, 0.25, 1.0, 3.3, 10.0, 100.0, 229.7, 690.0])
        | st.floats(0.001, 10_000)
    )
    name = draw(st.sampled_from(sorted(FIELDS)))
    section: dict[str, Any] = {
        "value": {
            "address": VALUE,
            "type": draw(st.sampled_from(TYPES)),
            "wordOrder": draw(st.sampled_from(["big", "little"])),
            "byteOrder": draw(st.sampled_from(["big", "little"])),
            "scale": scale,
            "sign": draw(st.sampled_from([1, -1])),
        },
        "unit": draw(st.sampled_from(["watts", "percent"])),
        "enable": {"address": ENABLE},
    }
    if draw(st.booleans()):
        section["step"] = scale * draw(st.integers(1, 1000))
    out, into = draw(st.integers(1, 10**9)), draw(st.integers(1, 10**9))
    watts = draw(st.integers(-into if name == "activePower" else 0, max(out, into)))
    return Case(name, section, Rated(max_injection_watts=out, max_absorption_watts=into), watts)


@given(case=cases())
def test_registers_hold_what_was_said_less_than_a_step_beside_what_was_asked(case: Case) -> None:
    watts, resolution = case.watts, case.resolution
    is_limit = case.name != "activePower"
    rounded_watts = resolution.rounded(watts)
    if not is_limit and not resolution.least_watts <= rounded_watts <= resolution.most_watts:
        with pytest.raises(DeviceRefusedError, match="cannot hold"):
            case.write()
        return
    image = case.write()
    means_watts = case.means_watts(image)
    told_watts = getattr(held(case.profile, case.rated, image, case.asked), FIELDS[case.name])

    assert isclose(means_watts, resolution.nearest(watts), rel_tol=FLOAT32, abs_tol=1e-6)
    asked_watts = resolution.bounded(watts) if is_limit else watts
    last_digit_watts = 0 if case.control.value.is_whole else abs(asked_watts) * FLOAT32
    assert abs(means_watts - asked_watts) < (resolution.step_watts or 1) + last_digit_watts
    assert abs(means_watts) <= abs(watts) * (1 + FLOAT32), "it grew"
    assert means_watts * watts >= 0, "it has another sign"
    if case.control.value.is_whole:
        assert told_watts == whole_watts(resolution.nearest(watts))
        assert abs(told_watts) <= abs(watts)


@given(case=cases())
def test_what_is_told_asks_for_the_same_again(case: Case) -> None:
    sent_watts = whole_watts(case.resolution.nearest(case.watts))

    assert whole_watts(case.resolution.nearest(sent_watts)) == sent_watts


def limit(**section: Any) -> Case:
    value = {"address": VALUE, "type": "uint16", **section.pop("value", {})}
    rated = Rated(max_injection_watts=0, max_absorption_watts=22_080)
    enable = {} if "release" in section else {"enable": {"address": ENABLE}}
    return Case("loadLimit", {"value": value, **enable, **section}, rated, 0)


@pytest.mark.parametrize(
    ("case", "resolution"),
    [
        (limit(), Resolution(step_watts=1, least_watts=0, most_watts=65_535)),
        (
            limit(value={"scale": 690}, release=22_080),
            Resolution(step_watts=690, least_watts=0, most_watts=690 * 65_535, none_watts=22_080),
        ),
        (
            limit(value={"scale": 69}, step=690),
            Resolution(step_watts=690, least_watts=0, most_watts=69 * 65_535),
        ),
        (
            limit(unit="percent"),
            Resolution(step_watts=220.8, least_watts=0, most_watts=22_080),
        ),
        (
            limit(value={"type": "int16", "sign": -1}),
            Resolution(step_watts=1, least_watts=-32_767, most_watts=32_768),
        ),
        (limit(value={"type": "float32"}), Resolution()),
        (limit(value={"type": "float32"}, step=690), Resolution(step_watts=690)),
    ],
)
def test_steps_and_ranges_are_those_of_the_registers(case: Case, resolution: Resolution) -> None:
    assert case.resolution == resolution


def test_a_limit_above_what_a_register_holds_is_lowered_to_that() -> None:
    case = limit()
    case = Case(case.name, case.section, case.rated, 70_000)

    assert case.means_watts(case.write()) == 65_535


def test_a_float_of_32_bits_has_steps_where_watts_are_more_than_its_digits() -> None:
    rated = Rated(max_injection_watts=0, max_absorption_watts=10**9)
    case = Case("loadLimit", limit(value={"type": "float32"}).section, rated, 123_456_789)

    assert case.resolution.step_watts == 64
    assert case.means_watts(case.write()) == 123_456_768
