"""The preview server: its socket, its threads, its beginning and end."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any

from pcmoe_det.errors import OutputError, UsageError
from pcmoe_det.streaming.preview.access import AccessRules
from pcmoe_det.streaming.preview.connections import Connections
from pcmoe_det.streaming.preview.handler import REQUEST_SECONDS, PreviewHandler, PreviewSite
from pcmoe_det.streaming.preview.pictures import PictureEncoder
from pcmoe_det.streaming.preview.sink import PreviewSink
from pcmoe_det.streaming.preview.state import PreviewState
from pcmoe_det.streaming.summary import StreamSummary

__all__ = ["PreviewServer"]

_log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 32
_SAMPLE_PERIOD_SECONDS = 1.0
# With the time for the threads below, the server has stopped within a second.
_ACCEPT_POLL_SECONDS = 0.1
_JOIN_SECONDS = 0.3

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n"
    b"Connection: close\r\n\r\ntoo many connections\n"
)


class PreviewServer:
    """One page with the live picture, rates and the committee; ``/metrics`` and ``/healthz``.

    The constructor takes the port, so that a port in use is found before a model is loaded; ``start`` (or
    the ``with`` block) begins to answer; ``close`` ends everything within a second. ``sink`` may be called
    before and after ``start``. A failing or slow preview never holds up a stream.

    ``/healthz`` answers 200 while every stream gives frames (or has ended in an orderly way), and 503 while
    there is no stream yet, when one has given no frame for longer than ``stall_seconds``, or when one has
    failed. A stream without its first frame counts from the making of its sink.

    Args:
        port: To listen on; 0 takes a free one.
        host: Address or name to listen on. Anything but loopback needs a token. There is no encryption: a
            token that crosses a network that others can listen to is theirs, too.
        token: If given, every request needs it: as ``Authorization: Bearer TOKEN``, or once as
            ``/?token=TOKEN``, which sets a cookie.
        summaries: The pipeline's summaries so far; asked at most once a second, from any thread.
        committee: The committee now as ``committee.view.committee_view`` gives it, or None where there is
            none; asked at most four times a second, from any thread.
        host_names: Further names under which browsers reach the server; others are refused.
        stall_seconds: See above.
        clock: Seconds, monotonic.

    Raises:
        UsageError: The port is none, the host is none, or it needs a token.
        OutputError: The port is in use or may not be used.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        token: str | None = None,
        summaries: Callable[[], Sequence[StreamSummary]],
        committee: Callable[[], Mapping[str, Any] | None],
        host_names: Sequence[str] = (),
        stall_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= port <= 65535:
            raise UsageError(f"there is no port {port}; a preview's port is a number from 1 to 65535")
        family, address = _resolve(host)
        rules = AccessRules(host=host, address=address, port=port, token=token, host_names=host_names)
        self._state = PreviewState(summaries=summaries, committee=committee, clock=clock)
        self._connections = Connections(limit=_MOST_CONNECTIONS)
        site = PreviewSite(self._state, rules)
        handler = type("Handler", (PreviewHandler,), {"site": site, "connections": self._connections})
        self._http = _listen(family, address, port, host, handler, self._connections)
        self._host = host
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._encoder = PictureEncoder(clock=clock)
        self._stopping = threading.Event()
        self._started = False
        self._closed = False
        self._threads = (
            threading.Thread(target=self._serve, name="preview-server", daemon=True),
            threading.Thread(target=self._sample, name="preview-sampler", daemon=True),
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """Where to find the page from this machine, without the token."""
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def sink(self, source_id: str) -> PreviewSink:
        """An output for one more stream.

        Args:
            source_id: The name to show, without credentials. A second stream of that name is shown as
                ``NAME (2)``; make sinks in the order of the pipeline's summaries.
        """
        sink = PreviewSink(
            self._state.unique_name(source_id),
            self._encoder.feed(),
            stall_seconds=self._stall_seconds,
            clock=self._clock,
        )
        self._state.add(sink)
        return sink

    def start(self) -> None:
        """Begin to answer. Once."""
        self._started = True
        self._encoder.start()
        for thread in self._threads:
            thread.start()
        _log.info("the preview is at %s", self.url)

    def close(self) -> None:
        """Stop answering and give the port back. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        self._stopping.set()
        if self._started:
            self._http.shutdown()
        self._http.server_close()
        self._connections.end_all()
        self._encoder.stop(timeout_seconds=_JOIN_SECONDS)
        for thread in self._threads if self._started else ():
            thread.join(_JOIN_SECONDS)

    def __enter__(self) -> PreviewServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        self._http.serve_forever(poll_interval=_ACCEPT_POLL_SECONDS)

    def _sample(self) -> None:
        while not self._stopping.wait(_SAMPLE_PERIOD_SECONDS):
            try:
                self._state.sample()
            except Exception:  # one sample less
                _log.exception("the preview could not take a sample")
            self._connections.end_overdue()


class _HttpServer(ThreadingHTTPServer):
    """Threads for connections, as many as there are places."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16
    # On Windows this would let a second program take the same port.
    allow_reuse_address = os.name == "posix"
    allow_reuse_port = False

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        handler: type[PreviewHandler],
        connections: Connections,
    ) -> None:
        self.address_family = family
        self._connections = connections
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Without the base class's look-up of the machine's name, which may take seconds."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.admit(request, seconds=REQUEST_SECONDS):
            super().process_request(request, client_address)
            return
        request.setblocking(False)  # this is the thread that accepts: it must not wait for anybody
        with contextlib.suppress(OSError):
            request.send(_FULL)
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        self._connections.release(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Clients that left in the middle of an answer are nobody's business."""
        if not isinstance(sys.exc_info()[1], OSError):
            _log.exception("a connection of the preview failed")


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Family and numeric address of a host; IPv4 where there are both."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"the preview cannot listen on {host!r}, which is no address of this machine ({error}); "
            "use 127.0.0.1, or 0.0.0.0 for all addresses"
        ) from error
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, str(ipaddress.ip_address(str(address[0]).partition("%")[0]))


def _listen(
    family: socket.AddressFamily,
    address: str,
    port: int,
    host: str,
    handler: type[PreviewHandler],
    connections: Connections,
) -> _HttpServer:
    try:
        return _HttpServer(family, (address, port), handler, connections)
    except OSError as error:
        where = f"port {port} on {host}"
        if error.errno == errno.EADDRINUSE:
            raise OutputError(
                f"the preview cannot use {where}: another program does; choose another port"
            ) from error
        if error.errno == errno.EACCES:
            raise OutputError(
                f"the preview may not use {where}; ports from 1024 on need no special rights"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"the preview cannot listen on {host}, which is no address of this machine; "
                "use 127.0.0.1, or 0.0.0.0 for all addresses"
            ) from error
        raise OutputError(f"the preview cannot use {where}: {error.strerror or error}") from error
