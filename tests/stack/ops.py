"""What the ops port of a program answers."""

import urllib.error
import urllib.request


def ask(port: int, path: str = "readyz") -> tuple[int, str]:
    """Return status and text of an answer; 0 = nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def metric(port: int, name: str) -> float:
    """Return the sum of the lines that begin with a name, which may have labels behind it."""
    status, text = ask(port, "metrics")
    assert status == 200, f"port {port} answers {status}"
    found = [line for line in text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in found)
