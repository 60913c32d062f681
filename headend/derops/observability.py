"""Logs and probes, the same in every program.

Logs are structlog events rendered as JSON, or as text on a terminal; records of the standard
library's logging go through the same renderer. The ops port serves /livez, /readyz and /metrics.

Who may reach a port can make lines and connections without end: both are bounded. What happens to a
dispatch is told all the same, each asset having a share of its own: ``STATIONS``.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from derops import metrics
from derops.ops_server import READ_SECONDS, BoundedServer, keep_first_bytes
from derops.rates import Rates

EventDict = structlog.typing.EventDict

LINES_PER_SECOND, LINES_AT_ONCE = 10.0, 500.0
"""How often one event is logged. Its next line says how many were left out."""

STATIONS = frozenset(
    {
        "dispatch.cancel_asked",
        "dispatch.created",
        "dispatch.deleted",
        "dispatch.ended",
        "dispatch.moved",
        "dispatch.recorded",
        "dispatch.repeated",
        "dispatch.reverted",
        "dispatch.stored",
        "dispatch.submitted",
        "dispatch.withdrawn",
        "dispatch.written",
        "report.taken",
        "status.stored",
    }
)
"""Events on the way of a dispatch. A fleet that starts at once has thousands of each, and whoever
looks for one dispatch must find it."""

STATION_LINES_PER_SECOND, STATION_LINES_AT_ONCE = 200.0, 50_000.0
"""How often each of them is logged, of all assets: twice what an order to each of 10,000 needs."""

ASSET_LINES_PER_SECOND, ASSET_LINES_AT_ONCE = 1.0, 500.0
"""And how often all of them are of one asset: a day of quarters of an hour, ordered at once."""

FIELD_CHARACTERS = 48 * 1024
"""The most of one text in a line; the longest that is needed whole is a record of the audit."""

FORGOTTEN_SECONDS, MOST_WORDS = 600.0, 5
"""Words about a part are new again after so long, and no more of one part are told."""


def configure_logging(level: str = "INFO") -> None:
    """Send all logs to stderr, one event per line."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                bound_fields,
                *([make_printable] if sys.stderr.isatty() else []),
                renderer,
            ],
        )
    )
    handler.addFilter(FloodFilter(time.monotonic))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def bound_fields(_: object, __: str, facts: EventDict) -> EventDict:
    """Cut texts of a line that are longer than any that is needed."""
    for name, value in facts.items():
        if isinstance(value, str) and len(value) > FIELD_CHARACTERS:
            facts[name] = f"{value[:FIELD_CHARACTERS]} ({len(value)} characters)"
    return facts


def make_printable(_: object, __: str, facts: EventDict) -> EventDict:
    """Escape what a terminal would obey: devices and peers say what they like."""
    for name, value in facts.items():
        if isinstance(value, str) and not value.isprintable():
            lines = value.split("\n") if name == "exception" else [value]
            facts[name] = "\n    ".join(map(_printable, lines))
    return facts


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class FloodFilter(logging.Filter):
    """Leaves out lines of an event that comes too often."""

    def __init__(self, now_seconds: Callable[[], float]) -> None:
        super().__init__()
        self._now_seconds = now_seconds
        self._events = Rates(per_second=LINES_PER_SECOND, burst=LINES_AT_ONCE)
        self._stations = Rates(per_second=STATION_LINES_PER_SECOND, burst=STATION_LINES_AT_ONCE)
        self._assets = Rates(per_second=ASSET_LINES_PER_SECOND, burst=ASSET_LINES_AT_ONCE)

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is written."""
        facts = record.msg if isinstance(record.msg, dict) else {}
        event = str(facts.get("event", record.name))
        is_station = event in STATIONS
        left_out = self._admit_station(event, facts) if is_station else self._admit(event)
        if left_out is None:
            metrics.LOG_LINES_LEFT_OUT.labels(of="dispatches" if is_station else "others").inc()
            return False
        if left_out and facts:
            facts["left_out"] = left_out
        return True

    def _admit(self, event: str) -> int | None:
        return self._events.admit(event, self._now_seconds())

    def _admit_station(self, event: str, facts: EventDict) -> int | None:
        """Admit a line by the share of its asset first: one asset must not use up that of all."""
        now = self._now_seconds()
        asset = f"{facts.get('namespace')}/{facts.get('asset')}"
        of_asset = self._assets.admit(asset, now)
        of_all = self._stations.admit(event, now) if of_asset is not None else None
        return None if of_asset is None or of_all is None else of_asset + of_all


class Readiness:
    """What a program waits for, told to people; a program that waits for nothing is ready.

    A part that works badly and is still of use is degraded: that is told, and the program stays
    ready. The log has one line for each new word about a part, however often it is tried again.
    """

    def __init__(self, now_seconds: Callable[[], float] = time.monotonic) -> None:
        self._expected: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._degraded: dict[str, str] = {}
        self._details: dict[str, str] = {}
        self._news = _News(now_seconds)
        self._lock = threading.Lock()
        self._log = structlog.get_logger("readiness")

    def expecting(self, part: str, why: str) -> None:
        """Say that ``part`` is not there yet; nothing is known to be wrong with it."""
        with self._lock:
            if part not in self._missing:
                self._expected[part] = why

    def waiting(self, part: str, why: str) -> None:
        """Say that ``part`` is missing, why, and what to do about it."""
        with self._lock:
            self._expected.pop(part, None)
            self._missing[part] = why
            is_news = self._news.hear(part, why)
        if is_news:
            self._log.warning("dependency.missing", part=part, why=why)

    def degraded(self, part: str, why: str) -> None:
        """Say that ``part`` does not do all it should, and why."""
        with self._lock:
            self._degraded[part] = why
            is_news = self._news.hear(part, why)
        if is_news:
            self._log.error("dependency.degraded", part=part, why=why)

    def found(self, part: str, detail: str = "") -> None:
        """Say that ``part`` is there, and well; ``detail`` says what it is."""
        with self._lock:
            if detail:
                self._details[part] = detail
            for absent in (self._expected, self._missing, self._degraded):
                absent.pop(part, None)
            is_news = self._news.is_over(part)
        if is_news:
            self._log.info("dependency.found", part=part)

    @property
    def is_ready(self) -> bool:
        """Whether all is there that the program waits for."""
        with self._lock:
            return not (self._missing or self._expected)

    @property
    def is_degraded(self) -> bool:
        """Whether a part does not do all it should."""
        with self._lock:
            return bool(self._degraded)

    def report(self) -> tuple[bool, str]:
        """Return whether all is there, and what is missing, degraded or there, a line each.

        What is known to be wrong comes first: the Event of a pod may show no more than that.
        """
        with self._lock:
            missing = [
                f"waiting for {part}: {why}"
                for known in (self._missing, self._expected)
                for part, why in sorted(known.items())
            ]
            degraded = [f"degraded {part}: {why}" for part, why in sorted(self._degraded.items())]
            details = [f"{part}: {detail}" for part, detail in sorted(self._details.items())]
        state = [*missing, *degraded] or ["ok"]
        return not missing, "\n".join([*state, *details])


class _News:
    """Which words about a part are new; the same words may come for ever."""

    def __init__(self, now_seconds: Callable[[], float]) -> None:
        self._now_seconds = now_seconds
        self._heard: dict[str, dict[str, float]] = {}
        self._told: set[str] = set()
        """Parts of which something was told, and not yet that it is over."""

    def hear(self, part: str, why: str) -> bool:
        """Tell whether these words are to be told."""
        now = self._now_seconds()
        heard = self._heard.setdefault(part, {})
        for old in [each for each, at in heard.items() if now - at > FORGOTTEN_SECONDS]:
            del heard[old]
        is_known = why in heard
        if not is_known and len(heard) >= MOST_WORDS:
            return False
        heard[why] = now
        if not is_known:
            self._told.add(part)
        return not is_known

    def is_over(self, part: str) -> bool:
        """Tell whether to say that all is well with a part again."""
        if part not in self._told:
            return False
        self._told.remove(part)
        return True


class OpsServer:
    """The ops port: /livez, /readyz, /metrics, served from its own thread."""

    def __init__(
        self, address: str, port: int, readiness: Readiness, alive: Callable[[], bool] | None = None
    ) -> None:
        """Bind the port; 0 takes a free one, see ``port``."""
        is_alive = alive or (lambda: True)
        metrics.READY.set_function(lambda: float(readiness.is_ready))
        metrics.DEGRADED.set_function(lambda: float(readiness.is_degraded))

        class Handler(BaseHTTPRequestHandler):
            timeout = READ_SECONDS

            def setup(self) -> None:
                super().setup()
                self.rfile = keep_first_bytes(self.rfile)

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
                elif path == "/livez":
                    good = is_alive()
                    self._text(200 if good else 503, "ok" if good else "main loop is stuck")
                elif path == "/readyz":
                    ready, text = readiness.report()
                    self._text(200 if ready else 503, text)
                else:
                    self._text(404, "try /livez, /readyz or /metrics")

            def _text(self, status: int, text: str) -> None:
                self._answer(status, "text/plain; charset=utf-8", (text + "\n").encode())

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Probes are not worth a line."""

        self._server = BoundedServer((address, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="ops", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
