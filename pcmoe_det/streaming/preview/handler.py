"""Answers to single requests: what is asked, whether it may be, and the headers around the answer."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pcmoe_det.streaming.preview.access import AccessRules
from pcmoe_det.streaming.preview.connections import Connections
from pcmoe_det.streaming.preview.prometheus import CONTENT_TYPE
from pcmoe_det.streaming.preview.state import PreviewState

__all__ = ["REQUEST_SECONDS", "Answer", "PreviewHandler", "PreviewSite", "load_page_files"]

_log = logging.getLogger(__name__)

REQUEST_SECONDS = 15.0
"""From one request's end to the next one's: waiting, receiving and answering together."""

_READ_TIMEOUT_SECONDS = 5.0
# Below the second after which a page would think that it lost the server.
_PICTURE_WAIT_SECONDS = 0.8

_PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/committee.js": ("committee.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and the headers of its own."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def text(cls, status: HTTPStatus, sentence: str, **headers: str) -> Answer:
        """A sentence for people."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, (sentence + "\n").encode(), headers=named)

    @classmethod
    def json(cls, status: HTTPStatus, record: Mapping[str, Any]) -> Answer:
        """A JSON object."""
        return cls(status, json.dumps(record, separators=(",", ":")).encode(), "application/json")


def load_page_files() -> dict[str, Answer]:
    """The page's own files by path, read once."""
    folder = resources.files(__package__).joinpath("page")
    return {
        path: Answer(HTTPStatus.OK, folder.joinpath(name).read_bytes(), content_type)
        for path, (name, content_type) in _PAGE_FILES.items()
    }


class PreviewSite:
    """What the server answers, apart from how requests come in.

    Args:
        state: What is shown.
        rules: Who may see it.
    """

    def __init__(self, state: PreviewState, rules: AccessRules) -> None:
        self._state = state
        self._rules = rules
        self._page_files = load_page_files()

    def answer(self, target: str, headers: Message) -> Answer:
        """The answer to a GET request.

        Args:
            target: Path and query as they were sent.
            headers: Of the request.
        """
        refusal = self._rules.refusal(headers)
        if refusal is not None:
            return Answer.text(refusal.status, refusal.reason)
        try:
            parts = urlsplit(target)
            query = parse_qs(parts.query, max_num_fields=8)
        except ValueError:
            return Answer.text(HTTPStatus.BAD_REQUEST, "this address is malformed")
        tokens = query.get("token", [])
        if parts.path == "/" and len(tokens) == 1 and self._rules.is_token(tokens[0]):
            # On to the address without the token, so that it stays out of the history and of screenshots.
            return Answer.text(HTTPStatus.SEE_OTHER, "see /", Location="/", Set_Cookie=self._rules.set_cookie)
        if not self._rules.is_authorized(headers):
            return Answer.text(
                HTTPStatus.UNAUTHORIZED,
                "this preview needs its token: open it as /?token=..., "
                "or send the header Authorization: Bearer ...",
                WWW_Authenticate="Bearer",
            )
        return self._route(parts.path, query)

    def _route(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        if path in self._page_files:
            return self._page_files[path]
        if path == "/state":
            after = _whole_number(query, "after")
            if after is None:
                return Answer.text(HTTPStatus.BAD_REQUEST, "after must be a whole number from 0")
            return Answer.json(HTTPStatus.OK, self._state.page_record(after=after))
        if path == "/picture":
            return self._picture(query)
        if path == "/metrics":
            return Answer(HTTPStatus.OK, self._state.metrics_text().encode(), CONTENT_TYPE)
        if path == "/healthz":
            healthy, record = self._state.health()
            return Answer.json(HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE, record)
        return Answer.text(
            HTTPStatus.NOT_FOUND, "there is nothing here; the page is /, the others /metrics and /healthz"
        )

    def _picture(self, query: Mapping[str, list[str]]) -> Answer:
        source, after = _whole_number(query, "source"), _whole_number(query, "after")
        sinks = self._state.sinks
        if source is None or after is None:
            return Answer.text(HTTPStatus.BAD_REQUEST, "source and after must be whole numbers from 0")
        if source >= len(sinks):
            return Answer.text(HTTPStatus.NOT_FOUND, f"there is no source {source}; there are {len(sinks)}")
        picture = sinks[source].pictures.newest(after=after, timeout_seconds=_PICTURE_WAIT_SECONDS)
        if picture is None:
            return Answer(HTTPStatus.NO_CONTENT)
        headers = {"X-Sequence": str(picture.sequence), "X-Frame-Index": str(picture.frame_index)}
        return Answer(HTTPStatus.OK, picture.data, "image/jpeg", headers)


class PreviewHandler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own. The server's subclass has ``site`` and ``connections``."""

    site: PreviewSite
    connections: Connections

    protocol_version = "HTTP/1.1"
    timeout = _READ_TIMEOUT_SECONDS
    wbufsize = -1  # headers and body leave together
    disable_nagle_algorithm = True
    connection: socket.socket

    def handle_one_request(self) -> None:
        self.connections.extend(self.connection, seconds=REQUEST_SECONDS)
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Also refuses what is neither GET nor HEAD, and bodies: unread, they would look like a request."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self.close_connection = True
            refusal = Answer.text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", Allow="GET, HEAD")
        elif self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True
            refusal = Answer.text(HTTPStatus.BAD_REQUEST, "a request with a body is not understood")
        else:
            return True
        self._send(refusal)
        return False

    def do_GET(self) -> None:
        """Answer."""
        try:
            answer = self.site.answer(self.path, self.headers)
        except Exception:  # a bug in the preview is no reason to end it, and none to show a traceback
            _log.exception("the preview failed on %s", self.path.partition("?")[0])
            answer = Answer.text(HTTPStatus.INTERNAL_SERVER_ERROR, "the preview failed; see the log")
        self._send(answer)

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Of the base class: requests that are no HTTP."""
        self.close_connection = True
        self._send(Answer.text(HTTPStatus(code), message or HTTPStatus(code).phrase))

    def version_string(self) -> str:
        """Nothing about versions."""
        return "pcmoe-det"

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: request lines may hold the token."""

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        if answer.status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
        for name, value in {**_HEADERS, **answer.headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD" and answer.body:
            self.wfile.write(answer.body)
        self.wfile.flush()


def _whole_number(query: Mapping[str, list[str]], name: str) -> int | None:
    """A number from 0 in the query; 0 if it is not there, None if it is no number."""
    text = query.get(name, ["0"])[0]
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 12 else None
