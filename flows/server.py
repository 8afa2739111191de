"""A Prefect server that lives as long as its caller: beside one local run, or beside a schedule.

`python -m flows.server PORT` serves the API alone, and is started early so that it loads beside a run's first stage;
`python -m flows.server PORT whole` has Prefect's scheduler and UI too. Both end when their standard input does: Prefect's own
temporary server outlives a killed flow. They use the same database as `prefect server start`, so finished runs can be looked
at there.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from pipeline.common.errors import StageFailed, UserError

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
}
"""What a local run needs of Prefect; a user's own settings win."""
WHOLE_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_RUNNER_POLL_FREQUENCY": "5",
}
"""What a schedule needs of Prefect; a user's own settings win."""
HOST = "127.0.0.1"
START_SECONDS = 120.0
ANSWER_SECONDS = 20.0
"""How long a server that is there already may take to say so."""


class LocalServer:
    """A server process on this machine. None is started where PREFECT_API_URL names one.

    Args:
        whole: with Prefect's scheduler and UI.
        port: where; a free one by default.
    """

    def __init__(self, *, whole: bool = False, port: int | None = None) -> None:
        for name, value in (WHOLE_SETTINGS if whole else SETTINGS).items():
            os.environ.setdefault(name, value)
        self._process: subprocess.Popen[bytes] | None = None
        if os.environ.get("PREFECT_API_URL"):
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port or 0))
            except OSError:
                raise UserError(
                    f"port {port} is in use; choose another with --port, or name its server in PREFECT_API_URL"
                ) from None
            self._port = probe.getsockname()[1]
        bypass_proxies()
        url = f"http://{HOST}:{self._port}/api"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.server", str(self._port), *(["whole"] if whole else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PREFECT_SERVER_UI_API_URL": url},
        )
        os.environ["PREFECT_API_URL"] = url

    @property
    def is_own(self) -> bool:
        """Whether it was started here, and is not one that PREFECT_API_URL names."""
        return self._process is not None

    @property
    def ui(self) -> str:
        """Where a browser finds Prefect's UI."""
        return os.environ["PREFECT_API_URL"].removesuffix("/api")

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            StageFailed: it ended, or does not answer.
            UserError: there is none where PREFECT_API_URL says.
        """
        if self._process is None:
            check_named_server()
            return
        health = f"http://{HOST}:{self._port}/api/health"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise StageFailed("Prefect's local server ended at its start. `prefect server start` shows why")
            try:
                with urllib.request.urlopen(health, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise StageFailed(f"Prefect's local server did not answer within {START_SECONDS:.0f} s")

    def stop(self) -> None:
        if self._process is None:
            return
        os.environ.pop("PREFECT_API_URL", None)
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(15)
        self._process = None


def bypass_proxies() -> None:
    """Have no proxy of the user's asked for the server on this machine, which it could not reach."""
    if not urllib.request.getproxies():
        return
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if hosts.strip() != "*" and HOST not in [host.strip() for host in hosts.split(",")]:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{hosts},{HOST}".lstrip(",")


def check_named_server() -> None:
    """Refuse a PREFECT_API_URL at which nothing answers; whatever answers is Prefect's to judge.

    Raises:
        UserError: what the address is, and why there is no answer.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except (urllib.error.URLError, OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # Prefect has certificates of its own
            return
        raise UserError(
            f"PREFECT_API_URL={url}: no Prefect server answers there ({reason}). Start it, name another, or unset the variable"
        ) from None


def main() -> None:
    threading.Thread(target=_end_with_caller, daemon=True).start()

    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(ephemeral="whole" not in sys.argv), host=HOST, port=int(sys.argv[1]), log_level="critical")


def _end_with_caller() -> None:
    os.read(0, 1)
    os._exit(0)


if __name__ == "__main__":
    main()
