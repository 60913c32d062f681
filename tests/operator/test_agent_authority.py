"""Which request tells who the agent CA is, and when it has to be asked anew."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from tests.operator.certifying import CERT_MANAGER, answered, csr, request
from tests.operator.making import at

from derops_operator.reconciling.agent_authority import (
    TRUST_CERTIFICATE,
    is_outdated,
    is_reissued,
    namespace_of,
    refuse_to_vouch,
    signed_agent,
    telling,
    to_approve,
    wanted_trust_certificate,
)
from derops_operator.resources.certificates import Request
from derops_operator.resources.instants import format_second

ISSUER = "derops-agent"
NAME = x509.DNSName(TRUST_CERTIFICATE)


def asked(*names: x509.GeneralName, request_options: Any = None, **spec: Any) -> Request:
    """Return a request as cert-manager makes it for the wanted Certificate."""
    wanted = wanted_trust_certificate("derops-system", ISSUER)["spec"]
    fields = {"duration": "1h0m0s", "usages": wanted["usages"], **spec}
    made = csr(*(names or (NAME,)), **(request_options or {}))
    return replace(request(request=made, **fields), asset_name="")


def issued(ca: str, at: float, serial: int = 7) -> Request:
    made = request(request=csr(NAME), duration="1h", usages=["digital signature"], serial=serial,
                   issued=at)  # fmt: skip
    return replace(made, asset_name="", ca_sha256=ca)


def test_the_wanted_certificate_is_of_no_use() -> None:
    spec = wanted_trust_certificate("derops-system", ISSUER)["spec"]

    assert "uris" not in spec
    assert "commonName" not in spec
    assert spec["usages"] == ["digital signature"]


def test_a_request_of_exactly_that_shape_is_approved() -> None:
    right = asked()

    assert refuse_to_vouch(right, ISSUER) == ""
    assert to_approve([right], ISSUER) == [right]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (asked(NAME, x509.UniformResourceIdentifier("spiffe://x/y")), "names"),
        (asked(x509.UniformResourceIdentifier("spiffe://x/y")), "names"),
        (asked(NAME, x509.DNSName("derops-gateway")), "names"),
        (asked(x509.DNSName("derops-gateway")), "names"),
        (asked(x509.RFC822Name(TRUST_CERTIFICATE)), "names"),
        (asked(usages=["digital signature", "client auth"]), "usages"),
        (asked(usages=["digital signature", "server auth"]), "usages"),
        (asked(isCA=True), "authority"),
        (asked(request_options={"authority": True}), "authority"),
        (asked(request_options={"common_name": "battery"}), "subject"),
        (asked(duration="2h"), "lasts"),
        (asked(issuerRef={"kind": "Issuer", "name": ISSUER}), "it is for Issuer"),
        (asked(issuerRef={"kind": "ClusterIssuer", "name": "other"}), "it is for ClusterIssuer"),
        (replace(asked(), csr=None), "cannot be read"),
    ],
)
def test_any_other_shape_gets_no_answer(wrong: Request, why: str) -> None:
    assert why in refuse_to_vouch(wrong, ISSUER)
    assert to_approve([wrong], ISSUER) == []
    assert telling([wrong], ISSUER) is None


@pytest.mark.parametrize("kind", ["Approved", "Denied"])
def test_what_has_an_answer_gets_no_other(kind: str) -> None:
    assert to_approve([answered(asked(), kind)], ISSUER) == []


def test_the_newest_that_was_signed_tells() -> None:
    newest, before = issued("b", 20), issued("a", 10)

    assert telling([asked(), newest, before], ISSUER) is newest


def test_what_was_signed_for_another_key_tells_nothing() -> None:
    found = issued("a", 10)
    assert found.csr is not None
    other = replace(found, csr=replace(found.csr, public_key_sha256="another"))

    assert telling([other], ISSUER) is None


def agent(ca: str, at: float, **changes: Any) -> Request:
    return replace(request(serial=9, issued=at), ca_sha256=ca, **changes)


def test_only_what_cert_manager_had_signed_by_the_agent_ca_is_an_agents() -> None:
    assert signed_agent(agent("a", 0), ISSUER, CERT_MANAGER)
    for change in (
        {"username": "a-tenant"},
        {"asset_name": ""},
        {"issuer_name": "other"},
        {"issuer_kind": "Issuer"},
        {"conditions": ()},
        {"issued": None},
    ):
        assert not signed_agent(agent("a", 0, **change), ISSUER, CERT_MANAGER)


def test_it_is_asked_anew_where_an_agent_has_a_later_word_of_another_authority() -> None:
    told = issued("a", 100)

    assert is_outdated(told, agent("b", 101))
    assert is_outdated(told, agent("b", 100))
    assert not is_outdated(told, agent("b", 99)), "the later word is ours"
    assert not is_outdated(told, agent("a", 101))
    assert not is_outdated(told, agent("", 101)), "the issuer says nothing"
    assert not is_outdated(told, None)


def test_it_is_asked_anew_where_the_authority_was_issued_since() -> None:
    told = issued("a", 100)

    assert is_reissued(told, {"status": {"notBefore": format_second(at(101))}})
    assert is_reissued(told, {"status": {"notBefore": format_second(at(100))}})
    assert not is_reissued(told, {"status": {"notBefore": format_second(at(99))}})
    assert not is_reissued(told, {"status": {}})
    assert not is_reissued(told, None)


def test_the_namespace_of_a_service_account_is_in_its_name() -> None:
    assert namespace_of(CERT_MANAGER) == "cert-manager"
    assert namespace_of("system:serviceaccount:other:name") == "other"
    assert namespace_of("somebody") == ""
    assert namespace_of("") == ""
