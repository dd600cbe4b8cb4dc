"""MLflow's own interface, served from this machine to this machine alone, with light settings."""

from __future__ import annotations

import os
import signal
import socket  # noqa: TID251  (to find a free port of this machine)
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request  # noqa: TID251  (to wait for the server that it started)
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from bilevel_apps.compare.database import client_of
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.system.signals import taken_by
from bilevel_apps.tracking.address import database_file, without_stray_folders

__all__ = ["HOST", "serve"]

HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 180.0, 10.0
LIGHT = {
    # Without it, the server starts a scheduler and workers for jobs that nobody here has.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def serve(uri: str, port: int, *, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, SIGTERM, or the end of the server.

    Args:
        uri: of an SQLite database.
        port: 0 takes a free one.
        tell: called with the address once it answers.

    Raises:
        InputError: the port is in use, or the address is that of a server.
        RunError: the server does not start, or ends by itself.
    """
    if database_file(uri) is None:
        raise InputError(f"{uri}: a server already: open it in a browser, or give a database")
    port = _free_port(port)
    client_of(uri)  # says in one line what is wrong with a database
    with taken_by(_interrupt), without_stray_folders(uri), tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "log")
        with log.open("wb") as output:
            server = subprocess.Popen(
                _command(uri, port),
                env=os.environ | LIGHT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=scratch,  # whatever it leaves lies there
                start_new_session=True,  # Ctrl-C is for this process, which then ends the server
            )
        try:
            _wait(server, port, log)
            tell(f"http://{HOST}:{port}")
            server.wait()
            raise _ended(server, log)
        except KeyboardInterrupt:
            return
        finally:
            _stop(server)


def _command(uri: str, port: int) -> list[str]:
    options = {"backend-store-uri": uri, "host": HOST, "port": port, "workers": 1}
    given = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "mlflow", "ui", *given]


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"`port`={port}: cannot be used ({error.strerror}): give another one, or 0 for "
                "any that is free"
            ) from None
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise _ended(server, log)
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):  # noqa: TID251
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RunError(f"MLflow did not answer within {START_SECONDS:.0f} s")


def _ended(server: subprocess.Popen[bytes], log: Path) -> RunError:
    lines = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    return RunError(f"MLflow's server ended with status {server.returncode}: {lines[-1][:300]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its worker."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(STOP_SECONDS)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
