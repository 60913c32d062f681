"""What a person sees, letter by letter."""

import io
from dataclasses import replace

import pytest
from tests.cli.seeing import (
    CONNECTED,
    DENIED,
    NOW,
    OFFLINE,
    PLACE,
    asset,
    condition,
    evidence,
    surroundings,
)

from derops_cli.diagnosing import diagnose
from derops_cli.pages import Heading, Lines, Table, Tone, page_of
from derops_cli.showing import plain, show

OFFLINE_TEXT = """\
battery-7 in pilot-north: broken at Stream: AgentOffline

    LINK      STATE          WHY AND EVIDENCE                                                                                      AGE    LIMIT
    Operator  holds          it wrote 12 s ago
                             ConfigMap derops-installation: observedAt: 2026-12-01T02:59:48Z                                       12 s   2 min 30 s
    Device    not looked at  only the agent knows, and it has no stream
    Sampling  not looked at  only the agent knows, and it has no stream
                             condition DataFlowing: False, AgentOffline: the agent has no stream (AgentSilent)                     4 min
                             spec.telemetry.intervalSeconds: 1 s                                                                          1 min
    Outbox    not looked at  only the agent knows, and it has no stream
->  Stream    broken         AgentOffline: the agent has no stream (AgentSilent)
                             condition Connected: False, NoStream: the agent has no stream (AgentSilent)                           4 min
                             certificate: notAfter: 2026-12-11T03:00:00Z, 10 d left
                             lastConnectedTime: 2026-12-01T02:00:00Z                                                               1 h
    Gateway   holds          Holds
                             condition GatewaysConnected: True, Holds, since 2026-12-01T02:00:00Z
    EventLog  holds          Holds
                             condition LogTakesData: True, Holds, since 2026-12-01T02:00:00Z
    Writer    holds          Holds
                             condition WriterFollows: True, Holds, since 2026-12-01T02:00:00Z
    Database  holds          Holds
                             condition DatabaseStores: True, Holds, since 2026-12-01T02:00:00Z
    Fresh     not looked at  no access to the API was asked for: see --as-service-account, --token, --login

likely causes, in order, and what proves each

1. the agent does not run
   kubectl get pods -n pilot-north -o wide  # an agent in the cluster
2. its machine or its link is down, or a firewall is in the way
   docker exec derops-agent /opt/derops/bin/ready 8083  # at the site
3. it is refused; the message of Connected, and its own log, say why
   docker logs --tail 30 derops-agent  # at the site
4. the gateway lets nobody in, and others are offline too
   kubectl exec -n derops-system derops-headend-0 -c gateway -- /opt/derops/bin/ready 8081

runbook: docs/runbooks/derops-assets-without-data.md
"""  # noqa: E501  # as it is printed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def offline() -> list[Heading | Lines | Table]:
    words = "the agent has no stream (AgentSilent)"
    seen = asset(condition("DataFlowing", "False", "AgentOffline", words, 240), OFFLINE)
    return page_of(diagnose(evidence(seen), NOW, PLACE))


def test_a_broken_link_as_plain_text() -> None:
    text = plain(offline())

    assert [line.split() for line in text.splitlines()] == [
        line.split() for line in OFFLINE_TEXT.splitlines()
    ]


def test_plain_text_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()

    show(offline(), stream)

    assert stream.getvalue() == plain(offline())
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_colours_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    coloured, bare = Terminal(), Terminal()

    show(offline(), coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    show(offline(), bare)

    assert "\x1b[1;31m" in coloured.getvalue()
    assert "\x1b[31m" not in bare.getvalue()
    assert "1;31" not in bare.getvalue()
    for stream in (coloured, bare):
        assert "likely causes" in stream.getvalue()


def test_what_somebody_else_wrote_is_no_markup_and_no_escape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "300")
    evil = "[red]x[/red] [link=http://evil]y[/link] \x1b]0;title\x07 \x1b[2J :smile:"
    seen = asset(condition("DataFlowing", "False", "DeviceSilent", evil), CONNECTED)
    stream = Terminal()

    show(page_of(diagnose(evidence(seen), NOW, PLACE)), stream)

    assert "[red]x[/red] [link=http://evil]y[/link] ?]0;title? ?[2J :smile:" in stream.getvalue()


def test_a_long_cell_is_wrapped_and_not_cut() -> None:
    words = " ".join(f"word{number}" for number in range(60))

    text = plain([Table(("A", "B"), ((Tone.PLAIN, (words, "1")),))])

    assert all(f"word{number}" in text for number in range(60))
    assert max(map(len, text.splitlines())) < 110


def test_what_could_not_be_looked_at_is_told_with_the_right() -> None:
    found = diagnose(evidence(surroundings=surroundings(DENIED)), NOW, PLACE)

    text = plain(page_of(replace(found, notes=())))

    assert text.startswith("battery-7 in pilot-north: no broken link among those looked at\n")
    assert text.endswith(
        "could not be looked at\n\nConfigMap derops-installation in derops-system: "
        "you may not get configmaps in namespace derops-system\n"
    )
