"""Addresses out of texts, and the language of texts."""

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning import language
from data.cleaning.redact import EMAIL, IPV4, IPV6, redact
from data.errors import DataError

BOTH = ("email", "ip")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Mail a.b+c@foo.co.uk.", f"Mail {EMAIL}."),
        ("<jos\u00e9@b\u00fccher.de>,x@y.org", f"<{EMAIL}>,{EMAIL}"),
        ("mailto:me@host.com?subject=1", f"mailto:{EMAIL}?subject=1"),
        ("a@b.com.x1 a@b.com-- *_a@b.com_*", f"{EMAIL}.x1 {EMAIL}-- *{EMAIL}_*"),
        ("DNS 8.8.8.8, 8.8.4.4:53 (1.1.1.1).", f"DNS {IPV4}, {IPV4}:53 ({IPV4})."),
        ("http://[2001:4860:4860::8888]:80/", f"http://[{IPV6}]:80/"),
        ("at 2606:4700:4700:0:0:0:0:1111: up", f"at {IPV6}: up"),
        ("::ffff:8.8.8.8", f"::ffff:{IPV4}"),
    ],
)
def test_addresses_are_replaced(text: str, want: str) -> None:
    assert redact(text, BOTH) == (want, want.count(EMAIL) + want.count(IPV4) + want.count(IPV6))
    assert redact(want, BOTH) == (want, 0)


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com x@mail.example.org root@localhost me@a.test", "@decorator.name a@b @a.com a @ b.com",
        "x@y.add_(1)", "weights@inputs.mean() x@1.5",
        "10.0.0.1 127.0.0.1 192.168.1.1 169.254.0.1 0.0.0.0 224.0.0.1 255.255.255.255",
        "192.0.2.1 2001:db8::1 ::1 fe80::1 fc00::1:2:3", "v1.2.3.4 version 1.2.3.4 Version: 1.2.3.4 p==1.2.3.4",
        "release-1.2.3.4 section 1.2.3.4 __version__ = '1.2.3.4'", "1.2.3.4.5 1.2.3 1.2.3.4rc1 1.2.3.4-beta 01.2.3.4",
        "256.1.1.1 1.2.3.1000 x1.2.3.4", "12:34:56 a::b x[1::2] std::vector 00:1a:2b:3c:4d:5e deadbeef::",
    ],
)  # fmt: skip
def test_what_stays(text: str) -> None:
    assert redact(text, BOTH) == (text, 0)


def test_kinds_are_apart() -> None:
    text = "a@b.com 8.8.8.8"
    assert redact(text, ["email"]) == (f"{EMAIL} 8.8.8.8", 1)
    assert redact(text, ["ip"]) == (f"a@b.com {IPV4}", 1)
    assert redact(text, []) == (text, 0)


parts = st.sampled_from(
    ["a@b.com", "x", "1", ".", ":", "::", "@", "8.8.8.8", "2001:4860:4860::8888", " ", "-", "(", "com", "v", "=",
     "\u00e9", "user@example.com", "f", "256"]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(parts, max_size=12).map("".join) | st.text(max_size=30))
def test_a_second_pass_changes_nothing(text: str) -> None:
    once, count = redact(text, BOTH)
    assert redact(once, BOTH) == (once, 0)
    assert (once == text) == (count == 0)


@settings(max_examples=100, deadline=None)
@given(st.from_regex(r"[a-z]{1,8}(\.[a-z0-9]{1,5})?@[a-z]{4,9}\.(com|de|co\.uk)", fullmatch=True), st.ip_addresses(v=4))
def test_every_address_is_found(email: str, address: Any) -> None:
    text, count = redact(f"To: {email}\nHost {address}\n", BOTH)
    assert text.startswith(f"To: {EMAIL}\n") or "example" in email
    public = address.is_global and not address.is_multicast
    assert text.endswith(f"Host {IPV4 if public else address}\n") and count <= 2


@pytest.mark.parametrize(
    "unit", ["a.", "@", "a@", "a@a.", "1.", "1:", ":", "a@b.c", "1.1.1.1 ", "v ", "a-", "\u00e9.", "f::f:"]
)
def test_long_runs_take_linear_time(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    redact(text, BOTH)  # quadratic time would be hours
    redact(f"{text}@{text}", BOTH)


def test_languages() -> None:
    pytest.importorskip("py3langid")
    assert language.detect("Das ist ein deutscher Satz \u00fcber die Sprache.") == "de"
    assert language.detect("\u8fd9\u662f\u4e00\u4e2a\u4e2d\u6587\u53e5\u5b50") == "zh"
    assert language.detect("This is an English sentence. " * 100 + "Das ist nun Deutsch. " * 1000) == "en"
    assert language.detect("") == language.detect("1234 +++ \n") == language.UNKNOWN


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    language._classifier.cache_clear()
    with pytest.raises(DataError, match=r"data.detect_language needs py3langid: `pip install -e .\[language\]`"):
        language.detect("some text")
    assert language.detect("123") == language.UNKNOWN
    language._classifier.cache_clear()
