"""Who may read the preview."""

from __future__ import annotations

from email.message import Message

import pytest

from pcmoe_det.errors import UsageError
from pcmoe_det.streaming.preview.access import AccessRules, is_loopback
from tests.streaming.preview.made import TOKEN


def rules(
    host: str = "127.0.0.1", address: str | None = None, token: str | None = None, **options: object
) -> AccessRules:
    return AccessRules(host=host, address=address or host, port=8080, token=token, **options)  # type: ignore[arg-type]


def headers(*pairs: tuple[str, str], host: str | None = "127.0.0.1:8080") -> Message:
    message = Message()
    if host is not None:
        message["Host"] = host
    for name, value in pairs:
        message[name] = value
    return message


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("0.0.0.0", False), ("192.168.1.2", False),
     ("::", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_loopback_addresses(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "127.0.0.1", "localhost:9000", "LOCALHOST:8080", "localhost.", "[::1]:8080"]
)
def test_own_names_are_accepted_on_any_port(host: str) -> None:
    assert rules().refusal(headers(host=host)) is None


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "192.168.1.5:8080",
     "localhost@evil", "127.0.0.1:8080:1", "127.0.0.1:", "localhost evil", "[::1", "8080"],
)  # fmt: skip
def test_other_host_names_are_refused(host: str | None) -> None:
    refusal = rules().refusal(headers(host=host))
    assert refusal is not None
    assert refusal.status == 403


def test_two_host_headers_are_refused() -> None:
    assert rules().refusal(headers(("Host", "127.0.0.1:8080"))) is not None


def test_off_loopback_numbers_and_given_names_are_accepted_and_other_names_are_not() -> None:
    open_rules = rules("0.0.0.0", token=TOKEN, host_names=["Camera7.example.org"])
    for host in ("192.168.1.5:8080", "[fe80::1]:8080", "camera7.example.org", "localhost"):
        assert open_rules.refusal(headers(host=host)) is None, host
    assert open_rules.refusal(headers(host="evil.example:8080")) is not None


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("http://127.0.0.1:8080", True), ("https://127.0.0.1:8080", True), ("http://127.0.0.1:8081", False),
     ("http://localhost:8080", False), ("http://evil.example", False), ("null", False), ("", False)],
)  # fmt: skip
def test_only_the_own_origin_is_accepted(origin: str, allowed: bool) -> None:
    assert (rules().refusal(headers(("Origin", origin))) is None) is allowed


@pytest.mark.parametrize(
    ("site", "allowed"), [("same-origin", True), ("none", True), ("same-site", False), ("cross-site", False)]
)
def test_fetches_of_other_sites_are_refused(site: str, allowed: bool) -> None:
    assert (rules().refusal(headers(("Sec-Fetch-Site", site))) is None) is allowed


def test_without_a_token_everybody_on_the_machine_may_read() -> None:
    assert rules().is_authorized(headers())
    assert not rules().is_token("")


@pytest.mark.parametrize(
    ("value", "allowed"),
    [(f"Bearer {TOKEN}", True), (f"bearer  {TOKEN}", True), (TOKEN, False), (f"Basic {TOKEN}", False),
     ("Bearer ", False), ("Bearer", False), (f"Bearer {TOKEN}x", False), (f"Bearer {TOKEN[:-1]}", False),
     ("Bearer caf\xe9-caf\xe9-caf\xe9-caf\xe9", False)],
)  # fmt: skip
def test_the_bearer_token(value: str, allowed: bool) -> None:
    assert rules(token=TOKEN).is_authorized(headers(("Authorization", value))) is allowed


def test_the_cookie_stands_for_the_token_and_does_not_hold_it() -> None:
    own = rules(token=TOKEN)
    pair, *attributes = own.set_cookie.split("; ")
    assert TOKEN not in own.set_cookie
    assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Strict"}
    assert own.is_authorized(headers(("Cookie", f"other=1; {pair}; last=2")))
    assert not own.is_authorized(headers(("Cookie", pair[:-1])))
    assert not own.is_authorized(headers(("Cookie", pair.replace("8080", "8081"))))
    assert not rules(token=TOKEN + "x").is_authorized(headers(("Cookie", pair)))


def test_the_empty_cookie_of_a_server_without_a_token_opens_no_server_with_one() -> None:
    assert not rules(token=TOKEN).is_authorized(headers(("Cookie", "pcmoe_preview_8080=")))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "::ffff:127.0.0.1"])
def test_other_addresses_need_a_token(host: str) -> None:
    with pytest.raises(UsageError, match="needs a token"):
        rules(host)


@pytest.mark.parametrize(
    "token", ["", "short", "a" * 15, "a" * 257, "with space in the token", "semi;colon;in;it;too"]
)
def test_weak_or_unfit_tokens_are_refused(token: str) -> None:
    with pytest.raises(UsageError, match="16 to 256"):
        rules(token=token)
