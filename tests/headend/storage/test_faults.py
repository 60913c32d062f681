"""Which fault each error of PostgreSQL is; what cannot be provoked here is said as it says it."""

import psycopg
import pytest
from psycopg import errors

from derops.data_path import SharedFault
from derops_headend.storage.faults import classify

UNREACHABLE, REFUSES = SharedFault.DATABASE_UNREACHABLE, SharedFault.DATABASE_REFUSES
FULL, FAILING = SharedFault.DATABASE_FULL, SharedFault.DATABASE_FAILING
_AT = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '

SAID = [
    (psycopg.OperationalError(_AT + "Connection refused"), UNREACHABLE),
    (errors.ConnectionTimeout("connection timeout expired"), UNREACHABLE),
    (
        psycopg.OperationalError("failed to resolve host 'db': Name or service not known"),
        UNREACHABLE,
    ),
    (psycopg.OperationalError("server closed the connection unexpectedly"), UNREACHABLE),
    (psycopg.OperationalError(_AT + "FATAL:  the database system is starting up"), UNREACHABLE),
    (errors.AdminShutdown("terminating connection due to administrator command"), UNREACHABLE),
    (
        psycopg.OperationalError(_AT + 'FATAL:  password authentication failed for user "w"'),
        REFUSES,
    ),
    (psycopg.OperationalError(_AT + 'FATAL:  database "derops" does not exist'), REFUSES),
    (psycopg.OperationalError(_AT + "FATAL:  no pg_hba.conf entry for host"), REFUSES),
    (psycopg.OperationalError(_AT + "FATAL:  sorry, too many clients already"), FAILING),
    (errors.InsufficientPrivilege("permission denied for table telemetry"), REFUSES),
    (errors.ReadOnlySqlTransaction("cannot execute INSERT"), REFUSES),
    (errors.UndefinedTable('relation "log_offset" does not exist'), REFUSES),
    (errors.DiskFull("could not extend file: No space left on device"), FULL),
    (psycopg.OperationalError(_AT + "FATAL:  could not write file: No space left on device"), FULL),
    (errors.IoError('could not write to file "base/1": No space left on device'), FULL),
    (errors.QueryCanceled("canceling statement due to statement timeout"), FAILING),
    (errors.DeadlockDetected("deadlock detected"), FAILING),
    (psycopg.InterfaceError("bad"), FAILING),
]


@pytest.mark.parametrize(("error", "fault"), SAID, ids=lambda each: str(each)[:60])
def test_each_error_is_a_fault(error: psycopg.Error, fault: SharedFault) -> None:
    assert classify(error) is fault


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://127.0.0.1:1/nowhere", UNREACHABLE),
        ("postgresql://no-such-host.invalid/derops", UNREACHABLE),
    ],
)
def test_what_psycopg_says_of_an_address_where_nobody_is(url: str, fault: SharedFault) -> None:
    with pytest.raises(psycopg.Error) as failed:
        psycopg.connect(url, connect_timeout=5)

    assert classify(failed.value) is fault
