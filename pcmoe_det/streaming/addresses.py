"""Network addresses: which are understood, and how they are shown without what opens doors.

An address is shown without user name and password. A value in its query is shown only where its name is
known to be harmless, because the names that services give their tokens cannot be listed; some cameras take
``user=...&password=...`` in the path, so names that look like a secret are hidden there too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from pcmoe_det.errors import UsageError

__all__ = ["SCHEMES", "Address", "is_address", "parse_address"]

# What FFmpeg may open for an address of each scheme. None holds `file`, `pipe`, `concat` or `subfile`: a
# playlist or a redirection must not read this machine's files.
_HTTP_PROTOCOLS = "http,https,tcp,tls,crypto,httpproxy"
SCHEMES: dict[str, str] = {
    "rtsp": "rtsp,rtp,tcp,udp",
    "rtsps": "rtsp,rtsps,rtp,tcp,tls,udp",
    "http": _HTTP_PROTOCOLS,
    "https": _HTTP_PROTOCOLS,
    "udp": "udp",
}
"""Supported schemes and FFmpeg's protocol white list for each."""

_HIDDEN = "***"
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_HARMLESS_NAMES = (
    *("camera", "cam", "channel", "chn", "stream", "substream", "subtype", "profile", "resolution", "width"),
    *("height", "fps", "quality", "codec", "compression", "rotation", "video", "audio", "transport"),
    *("unicast", "proto", "pkt_size", "buffer_size", "fifo_size", "localaddr", "localport", "reuse", "ttl"),
)
_SECRET_NAME = (
    r"[\w.-]*?(?:user|login|account|pass|pwd|psw|pin|token|secret|key|sig|auth|cred|session|code|hash|jwt)"
    r"[\w.-]*?"
)
# In a path: up to the next separator, or to `_name=` as in `user=a_password=b_channel=1`.
_SECRET_IN_PATH = re.compile(rf"(?i)({_SECRET_NAME})=(.*?)(?=_[a-z]+=|[&/;,]|$)")
_SHORTEST_SCRUBBED = 3  # a shorter secret would take letters out of every sentence


@dataclass(frozen=True, slots=True)
class Address:
    """A network address.

    Attributes:
        url: With everything that was typed; for FFmpeg only.
        scheme: In lower case.
        host: Empty for a UDP address on all of this machine's interfaces.
        redacted: Without credentials; for people, logs and outputs.
        secrets: What ``scrub`` takes out of other programs' sentences.
    """

    url: str = field(repr=False)
    scheme: str
    host: str
    redacted: str
    secrets: tuple[str, ...] = field(repr=False)

    @property
    def protocols(self) -> str:
        """FFmpeg's protocol white list."""
        return SCHEMES[self.scheme]

    def scrub(self, text: str) -> str:
        """``text`` with this address and its secrets taken out."""
        text = text.replace(self.url, self.redacted)
        for secret in self.secrets:
            text = text.replace(secret, _HIDDEN)
        return text


def is_address(location: str) -> bool:
    """Whether ``location`` starts like a network address and not like a path."""
    return _ADDRESS.match(location) is not None


def parse_address(location: str) -> Address:
    """Understand a network address.

    Raises:
        UsageError: Unknown scheme, no host or port, or a password with characters that are not
            percent-encoded; the message shows nothing of the address that could be secret.
    """
    match = _ADDRESS.match(location)
    if match is None or match.group(1).lower() not in SCHEMES:
        named = f"{match.group(1)}://..." if match is not None else "an address without scheme"
        raise UsageError(f"{named} is not supported as a source; use {', '.join(f'{s}://' for s in SCHEMES)}")
    scheme = match.group(1).lower()
    try:
        parts = urlsplit(location)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise _unclear(scheme) from None
    # An unencoded @, / or # in a password moves the rest of it into the host, the path or the fragment. What
    # stands before it then looks like a user name, or like a host with a port.
    has_user = "@" in parts.netloc and not parts.netloc.startswith("@")
    stray = parts.fragment + (parts.path + parts.query if has_user or port is not None else "")
    if "@" in stray or parts.netloc.count("@") > 1 or re.search(r"[\x00-\x20\x7f]", location):
        raise _unclear(scheme)
    if scheme == "udp":
        if port is None:
            raise UsageError("a udp:// address needs a port to listen on, such as udp://127.0.0.1:5000")
    elif not host:
        raise UsageError(f"the {scheme}:// address names no host; give {scheme}://HOST/PATH")
    redacted, secrets = _redact(parts)
    kept = sorted({s for s in secrets if len(s) >= _SHORTEST_SCRUBBED}, key=len, reverse=True)
    url = scheme + location[len(scheme) :]  # FFmpeg knows schemes in lower case only
    return Address(url=url, scheme=scheme, host=host, redacted=redacted, secrets=tuple(kept))


def _unclear(scheme: str) -> UsageError:
    return UsageError(
        f"the {scheme}://... address cannot be understood; write special characters in user name and "
        "password percent-encoded (@ as %40, : as %3A, / as %2F, # as %23, a space as %20)"
    )


def _redact(parts: SplitResult) -> tuple[str, list[str]]:
    """The address for people, and what was left out of it."""
    secrets: list[str] = []
    user_info, _, host = parts.netloc.rpartition("@")
    secrets += [user_info, *user_info.split(":", 1)]
    path = parts.path

    def hide(match: re.Match[str]) -> str:
        secrets.append(match.group(2))
        return f"{match.group(1)}={_HIDDEN}"

    path = _SECRET_IN_PATH.sub(hide, unquote(path) if "%" in path else path)
    pairs = []
    for pair in filter(None, parts.query.split("&")):
        name, equals, value = pair.partition("=")
        if equals and _is_harmless(unquote(name), value):
            pairs.append(pair)
        elif equals:
            secrets.append(value)
            pairs.append(f"{name}={_HIDDEN}")
        else:
            secrets.append(name)
            pairs.append(_HIDDEN)
    secrets.append(parts.fragment)
    shown = f"{parts.scheme}://{host}{path}" + (f"?{'&'.join(pairs)}" if pairs else "")
    return shown, [*secrets, *(unquote(secret) for secret in secrets)]


def _is_harmless(name: str, value: str) -> bool:
    """Known names with a plain value; and small numbers, which tell cameras apart, under other names."""
    if name.lower() in _HARMLESS_NAMES:
        return re.fullmatch(r"[\w.:-]{0,40}", value) is not None
    return re.fullmatch(r"\d{1,3}", value) is not None and re.fullmatch(rf"(?i){_SECRET_NAME}", name) is None
