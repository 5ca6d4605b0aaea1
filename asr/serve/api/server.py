"""An application on a port: bound before anything slow, run in a thread, stopped gently.

The main thread keeps the signals and loads the model; ``/health`` answers meanwhile.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

import uvicorn

from asr.errors import ConfigError

_BACKLOG = 2048
_HEADERS = 64 << 10
"""Most bytes of a request's head."""

_LAST_WRITES = 5
"""Seconds that connections have for their last bytes once all answers have ended."""


def bind(host: str, port: int, *, protected: bool) -> socket.socket:
    """Return a listening socket.

    Args:
        host: name or address of an interface.
        port: 0 takes a free one.
        protected: whether clients must send a key; without one, only this machine may ask.

    Raises:
        ConfigError: there is no such host; it can be reached from elsewhere and nothing protects
            it; the port is taken, or not ours to take.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"there is no interface '{host}'; give the address of one with --host"
        ) from error
    addresses = {str(info[4][0]).partition("%")[0] for info in found}
    local = all(ipaddress.ip_address(address).is_loopback for address in addresses)
    if not local and not protected:
        raise ConfigError(
            f"host {host} can be reached from other machines and there is no API key; set one "
            "with ASR_API_KEY or --api-key, or give --host 127.0.0.1"
        )
    family, _, _, _, address = found[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except PermissionError as error:
        raise ConfigError(
            f"port {port} may not be used by this user; give one above 1023 with --port"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be used ({os.strerror(error.errno or 0)}); give another "
            "with --port, or stop what listens there"
        ) from error


def url_of(bound: socket.socket) -> str:
    """Return the URL of a listening socket, as a client on this machine can use it."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if bound.family == socket.AF_INET6 else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """Runs an application on a socket while the context is open.

    Leaving the context closes the socket at once, and waits a little for what is being sent.

    Args:
        app: an ASGI application.
        bound: a listening socket.
    """

    def __init__(self, app: Any, bound: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http="h11",  # the one whose limit on headers can be set
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            log_level="critical",  # what fails in a request is logged by the application
            server_header=False,
            h11_max_incomplete_event_size=_HEADERS,
            timeout_graceful_shutdown=_LAST_WRITES,
        )
        self._server = uvicorn.Server(config)
        self._bound = bound
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [bound]}, name="asr-http", daemon=True
        )

    def __enter__(self) -> Self:
        """Start; return once requests are taken."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self._server.should_exit = True
        self._thread.join(_LAST_WRITES + 5)
        self._bound.close()
