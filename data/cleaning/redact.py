"""Personal data out of texts: e-mail addresses and public IP addresses become reserved ones.

What is reserved already, for documentation or for private use, stays, and so a second pass changes nothing. Every
pattern starts only where a token starts and never gives back what it took, so that time is linear in the text.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..documents import Document, Turn

EMAIL, IPV4, IPV6 = "user@example.com", "192.0.2.1", "2001:db8::1"
"""What stands for all addresses (RFC 2606, RFC 5737, RFC 3849)."""

_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]++@([\w-]++(?:\.[\w-]++)++)(\()?")
_TOP = re.compile(r"[^\W\d_]{2,63}")
_RESERVED = re.compile(r"(?:.*\.)?(?:example\.(?:com|net|org)|example|invalid|test|localhost)", re.IGNORECASE)
_V4 = re.compile(r"(?<![\w.])[0-9]{1,3}+(?:\.[0-9]{1,3}+){3}(?!\w|\.\w|-[^\W\d_])")
_V6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]*+:[0-9A-Fa-f]*+:)[0-9A-Fa-f:]++(?!\w)")
_VERSION = re.compile(
    r"(?:(?:\b|_)(?:versions?|ver|releases?|rev|revision|build|section|chapter|oid)[\W_]{0,6}|[=~<>!]=\s?|(?<!\w)v\.?\s?)$",
    re.IGNORECASE,
)
_BEFORE = 20  # characters in which a word such as `version` is looked for
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")


def redact(text: str, kinds: Sequence[str]) -> tuple[str, int]:
    """(the text without what `kinds` name, how many places were changed).

    `email`: `a@b.com` becomes user@example.com, unless its domain is reserved (RFC 2606) or a `(` follows, as in
    `weights@inputs.mean()`. `ip`: global addresses become 192.0.2.1 and 2001:db8::1; not so a number behind `version`,
    `==` or the like, an IPv6 address of fewer than three groups, which a slice may be, and what is longer than four
    numbers.
    """
    count = 0
    if "email" in kinds and "@" in text:
        text, some = _replace(_EMAIL, _email, text)
        count += some
    if "ip" in kinds:
        for pattern, new in ((_V6, _v6), (_V4, _v4)):
            text, some = _replace(pattern, new, text)
            count += some
    return text, count


def redact_document(document: Document, kinds: Sequence[str]) -> tuple[Document, int]:
    """`redact` of a document's text, or of what each turn of a conversation says."""
    said = [turn.text for turn in document.turns] or [document.text or ""]
    texts, counts = zip(*(redact(text, kinds) for text in said), strict=True)
    turns = tuple(Turn(turn.role, text) for turn, text in zip(document.turns, texts, strict=False))
    return replace(document, text="".join(texts), turns=turns), sum(counts)


def _replace(pattern: re.Pattern[str], new: Callable[[re.Match[str]], str], text: str) -> tuple[str, int]:
    count = 0

    def each(match: re.Match[str]) -> str:
        nonlocal count
        found = new(match)
        count += found != match[0]
        return found

    return pattern.sub(each, text), count


def _email(match: re.Match[str]) -> str:
    """The longest domain that ends in a name of letters is the address's; what follows it stays."""
    whole = match[1].rstrip("-_")  # a dash, or the end of what Markdown emphasizes, is no part of it
    labels = whole.split(".")
    while len(labels) > 1 and not _TOP.fullmatch(labels[-1]):
        labels.pop()
    domain = ".".join(labels)
    called = match[2] and domain == whole
    if len(labels) < 2 or called or _RESERVED.fullmatch(domain):
        return match[0]
    return EMAIL + match[1][len(domain) :] + (match[2] or "")


def _v4(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - _BEFORE) : match.start()]
    return IPV4 if _is_public(match[0]) and not _VERSION.search(before) else match[0]


def _v6(match: re.Match[str]) -> str:
    token = match[0]
    rest = ":" if token.endswith(":") and not token.endswith("::") else ""
    address = token.removesuffix(":") if rest else token
    groups = sum(map(bool, address.split(":"))) if len(address) < 40 else 0
    return IPV6 + rest if groups > 2 and _is_public(address) else token


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast and (found.version == 4 or found in _PUBLIC_V6)
