"""The server of the viewer: on this machine alone unless told otherwise, a pane of its own for each browser."""

import contextlib
import errno
import io
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cuao3d.console import note
from cuao3d.errors import InputError, NotInstalledError
from cuao3d.view.pane import Pane
from cuao3d.view.session import Session

if TYPE_CHECKING:
    import viser

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that nobody else can reach."""

SECONDS_TO_LEAVE = 5.0
"""Time that work for a client may take to end when the server stops."""

CONNECTIONS = "websockets.server"
"""Logger of what goes wrong with a connection."""


class Viewer:
    """A running viewer; a context that stops it.

    Attributes:
        url: Where it is.
    """

    def __init__(self, session: Session, *, scene: str, host: str = "127.0.0.1", port: int = 0) -> None:
        """Start to serve.

        Args:
            session: What is looked at.
            scene: The scene that is shown first.
            host: Address to listen on.
            port: Port to listen on; 0: a free one.

        Raises:
            NotInstalledError: viser is not installed.
            InputError: The port is in use, or there is no such host.
        """
        try:
            import viser
        except ImportError as error:
            raise NotInstalledError("The viewer needs viser: pip install 'cuao3d[view]'") from error
        _check_address(host, port)
        logging.getLogger(CONNECTIONS).addFilter(_in_a_line)
        session.layers(scene)  # what is wrong with the scene is said now
        self._session, self._scene = session, scene
        self._panes: dict[int, Pane] = {}
        self._lock = threading.Lock()

        with _quiet():
            self.server = viser.ViserServer(host=host, port=port, label="cuao3d", verbose=False)
        self.server.request_share_url = lambda verbose=True: None  # a browser could ask to publish the page
        if port and self.server.get_port() != port:  # taken in this very moment
            self.stop()
            raise InputError(_in_use(host, port))
        self.server.gui.configure_theme(
            show_logo=False,
            show_share_button=False,
            control_width="large",
            brand_color=(0, 114, 178),
        )
        self.server.gui.main_panel.dock_right()
        self.server.on_client_connect(self._greet)
        self.server.on_client_disconnect(self._part)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server.get_port()}"

    def __enter__(self) -> "Viewer":
        """Return the viewer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def wait(self) -> None:
        """Serve until the program is interrupted."""
        while True:
            time.sleep(3600)

    def stop(self) -> None:
        """Stop serving, and wait for work that still runs."""
        with self._lock:
            panes, self._panes = list(self._panes.values()), {}
        for pane in panes:
            pane.close()
        with _quiet():
            self.server.stop()
        for pane in panes:
            pane.join(SECONDS_TO_LEAVE)

    def _greet(self, client: "viser.ClientHandle") -> None:
        """Build the pane of a browser that has opened the page."""
        pane = Pane(client, self._session, self._scene)
        with self._lock:
            self._panes[client.client_id] = pane
        if client.client_id not in self.server.get_clients():  # it has left while the pane was built
            self._part(client)

    def _part(self, client: "viser.ClientHandle") -> None:
        """Close the pane of a browser that has left."""
        with self._lock:
            pane = self._panes.pop(client.client_id, None)
        if pane is not None:
            pane.close()


def warn_of_host(host: str) -> None:
    """Say what it means to listen on an address that others can reach."""
    if host not in LOOPBACK:
        note(
            f"--host {host}: whoever can reach this machine can open the viewer; there is no password.", head="warning"
        )


def _check_address(host: str, port: int) -> None:
    """Raise InputError if nobody can listen there; viser would take another port, or try for ever."""
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port}: a port is a number from 0, which means a free one, to {(1 << 16) - 1}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host {host}: there is no such host; 127.0.0.1 is this machine alone.") from None
    except PermissionError:
        raise InputError(
            f"--port {port} is reserved for the system; choose one above 1023, or 0 for a free one."
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(_in_use(host, port)) from None
        raise InputError(f"--host {host}: cannot listen there ({error.strerror}).") from None


def _in_a_line(record: logging.LogRecord) -> bool:
    """Say in one line, instead of by a traceback, that a connection was closed for what came through it."""
    if record.getMessage() == "connection handler failed":
        note("A client sent what no page of the viewer sends; its connection was closed.")
        return False
    return True


def _in_use(host: str, port: int) -> str:
    return f"--port {port} of {host} is in use; choose another one, or leave it out for a free one."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what viser prints off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
