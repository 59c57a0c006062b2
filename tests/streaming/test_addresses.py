"""Network addresses: what is understood and what is shown of them."""

from __future__ import annotations

import pytest

from pcmoe_det.errors import UsageError
from pcmoe_det.streaming.addresses import SCHEMES, is_address, parse_address


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("rtsp://cam/h264", "rtsp://cam/h264"),
        ("rtsp://admin:hunter2@cam:554/h264?channel=1&subtype=0", "rtsp://cam:554/h264?channel=1&subtype=0"),
        ("rtsp://admin@cam/h264", "rtsp://cam/h264"),
        ("rtsp://:hunter2@cam/h264", "rtsp://cam/h264"),
        ("rtsp://ad%40min:hun%3Ater2@[::1]:8554/a/b", "rtsp://[::1]:8554/a/b"),
        ("http://cam/v?token=hunter2&fps=5", "http://cam/v?token=***&fps=5"),
        ("http://cam/v?password=hunter2", "http://cam/v?password=***"),
        ("http://cam/v?pwd=123&cam=12", "http://cam/v?pwd=***&cam=12"),
        ("http://cam/v?X-Amz-Signature=hunter2&key=hunter2", "http://cam/v?X-Amz-Signature=***&key=***"),
        ("http://cam/v?anything=hunter2&number=7", "http://cam/v?anything=***&number=7"),
        ("http://cam/v?hunter2", "http://cam/v?***"),
        ("http://cam/v?%74oken=hunter2", "http://cam/v?%74oken=***"),
        ("http://cam/v?channel=hunter2%20and%20more", "http://cam/v?channel=***"),
        ("http://cam/v#access=hunter2", "http://cam/v"),
        (
            "rtsp://10.0.0.9:554/user=admin_password=hunter2_channel=1_stream=0.sdp",
            "rtsp://10.0.0.9:554/user=***_password=***_channel=1_stream=0.sdp",
        ),
        ("rtsp://cam/user=admin&password=hunter2&channel=1", "rtsp://cam/user=***&password=***&channel=1"),
        ("http://cam/a;jsessionid=hunter2/b", "http://cam/a;jsessionid=***/b"),
        ("HTTPS://me:hunter2@CAM/Path", "https://CAM/Path"),
        ("udp://127.0.0.1:5000?pkt_size=1316", "udp://127.0.0.1:5000?pkt_size=1316"),
        ("udp://@:5000", "udp://:5000"),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
    ],
)
def test_credentials_are_never_shown(typed: str, shown: str) -> None:
    address = parse_address(typed)
    assert address.redacted == shown
    assert "hunter2" not in repr(address)
    assert "hun" not in str(address)
    assert address.url.split("://")[1] == typed.split("://")[1]  # FFmpeg gets all of it


def test_other_programs_sentences_are_scrubbed() -> None:
    address = parse_address("rtsp://admin:hun%3Ater2@cam/a?token=tok3n")
    said = f"cannot open {address.url} (user admin, password hun:ter2, hun%3Ater2, tok3n)"
    assert address.scrub(said) == "cannot open rtsp://cam/a?token=*** (user ***, password ***, ***, ***)"


@pytest.mark.parametrize(
    "typed",
    [
        "rtsp://me:hun@ter2@cam/a",
        "rtsp://me:hun/ter2@cam/a",
        "rtsp://me:12/ter2@cam/a",
        "rtsp://me:hun#ter2@cam/a",
        "rtsp://me:12#ter2@cam/a",
        "rtsp://me:hun?ter2@cam/a",
        "rtsp://me:hun ter2@cam/a",
        "rtsp://me:hun\nter2@cam/a",
        "http://[::1/ter2",
        "http://cam:port/ter2",
        "http://cam:99999/ter2",
        "http:///ter2",
        "udp://127.0.0.1",
        "ftp://me:hunter2@host/a",
        "file:///etc/ter2",
        "concat:///ter2",
    ],
)
def test_what_cannot_be_understood_is_refused_without_showing_it(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(typed)
    assert "ter2" not in str(caught.value)
    assert "hun" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "expected"),
    [("rtsp://x", True), ("HTTP://x", True), ("clip.mp4", False), ("a:b.mp4", False), ("./http://x", False)],
)
def test_paths_are_no_addresses(location: str, expected: bool) -> None:
    assert is_address(location) is expected


def test_no_scheme_may_open_local_files() -> None:
    allowed = {protocol for protocols in SCHEMES.values() for protocol in protocols.split(",")}
    assert allowed.isdisjoint({"file", "pipe", "fd", "concat", "subfile", "unix", "data", "cache", "async"})
