"""Who may read the preview: checks of a request's headers, without any network.

What is refused, and why:

* a ``Host`` that is not a name of this server: a foreign name whose address was switched to ours (DNS
  rebinding) would make the browser treat the two as one site;
* a request that a page of another origin made, as ``Origin`` or ``Sec-Fetch-Site`` tell;
* a request without the token, where there is one. Off loopback there always is.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus

from pcmoe_det.errors import UsageError

__all__ = ["AccessRules", "Refusal", "is_loopback"]

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# Characters that need no escaping in a URL, a header or a shell.
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:/@\s]+))(?::\d{1,5})?")
# "none" is an address typed by hand or a bookmark. "same-site" is another port of this machine.
_OWN_FETCH_SITES = frozenset({"same-origin", "none"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered: one sentence for whoever asked."""

    status: HTTPStatus
    reason: str


def is_loopback(address: str) -> bool:
    """Whether a numeric address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class AccessRules:
    """The rules of one server.

    Args:
        host: The name or address that the server was asked to listen on.
        address: The numeric address that it listens on.
        port: Its port; part of the cookie's name, because cookies do not tell ports apart.
        token: The secret, or None.
        host_names: Further names under which the server is reached, such as ``camera7.example.org``.

    Raises:
        UsageError: The address is not loopback and there is no token, or the token is too short or has
            characters that need escaping.
    """

    def __init__(
        self, *, host: str, address: str, port: int, token: str | None, host_names: Sequence[str] = ()
    ) -> None:
        loopback = is_loopback(address)
        if token is None and not loopback:
            raise UsageError(
                f"a preview on {host} can be read by other machines and needs a token; give one of 16 "
                "characters or more, or stay on 127.0.0.1"
            )
        if token is not None and not _TOKEN.fullmatch(token):
            raise UsageError(
                "the preview's token must have 16 to 256 characters out of A-Z a-z 0-9 . _ ~ -, so that it "
                "fits into an address; python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
            )
        self._names = set(_LOOPBACK_NAMES) | {host.lower()} | {name.lower() for name in host_names}
        if not loopback:
            own_name = socket.gethostname().lower()
            self._names |= {own_name, f"{own_name}.local"}
        # Rebinding needs a name; whoever wrote the number of an address meant that address.
        self._accepts_numbers = not loopback
        self._token = token
        self._cookie_name = f"pcmoe_preview_{port}"
        # The cookie is no help to learn the token: browsers send it to other ports of the host, too.
        self._cookie_value = (
            hmac.new(token.encode(), b"pcmoe preview cookie", hashlib.sha256).hexdigest() if token else ""
        )

    def refusal(self, headers: Message) -> Refusal | None:
        """Why a request with these headers comes from the wrong place; None if it does not."""
        hosts = headers.get_all("Host", [])
        if len(hosts) != 1 or not self._is_own_host(hosts[0]):
            return Refusal(
                HTTPStatus.FORBIDDEN,
                "this server is not known under that name; use the address that it printed",
            )
        origin = headers.get("Origin")
        if origin is not None and origin.lower() not in (
            f"http://{hosts[0].lower()}",
            f"https://{hosts[0].lower()}",
        ):
            return Refusal(HTTPStatus.FORBIDDEN, "requests of other origins are refused")
        fetch_site = headers.get("Sec-Fetch-Site")
        if fetch_site is not None and fetch_site.lower() not in _OWN_FETCH_SITES:
            return Refusal(
                HTTPStatus.FORBIDDEN,
                "requests of other sites are refused; put the address into the address bar yourself",
            )
        return None

    def is_authorized(self, headers: Message) -> bool:
        """Whether the token came along, as a bearer token or as our cookie; True where there is none."""
        if self._token is None:
            return True
        scheme, _, credentials = headers.get("Authorization", "").partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else ""
        by_bearer = self.is_token(bearer)
        by_cookie = _equal(self._cookie(headers), self._cookie_value)
        return by_bearer or by_cookie

    def is_token(self, candidate: str) -> bool:
        """Whether this is the token; takes the same time however much of it is right."""
        return self._token is not None and _equal(candidate, self._token)

    @property
    def set_cookie(self) -> str:
        """Value of the ``Set-Cookie`` header that stands for the token from now on."""
        return f"{self._cookie_name}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict"

    def _cookie(self, headers: Message) -> str:
        for header in headers.get_all("Cookie", []):
            for pair in header.split(";"):
                name, _, value = pair.strip().partition("=")
                if name == self._cookie_name:
                    return value
        return ""

    def _is_own_host(self, header: str) -> bool:
        """Any port is right: a tunnel or a container may have another one outside."""
        match = _HOST.fullmatch(header.strip())
        if match is None:
            return False
        name = (match["six"] or match["name"]).lower().rstrip(".")
        if name in self._names:
            return True
        if not self._accepts_numbers:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _equal(candidate: str, secret: str) -> bool:
    return hmac.compare_digest(candidate.encode("utf-8", "replace"), secret.encode())
