"""Proof that an advertisement was made by somebody who knows MDNS_SECRET.

Signed is all of it: its name, where it leads (host, port and addresses), what it says, and until when it
holds. So it cannot be used for another address, nor under another name, nor for long.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Collection, Mapping

ADDRESSES, UNTIL, PROOF = "addrs", "until", "proof"
"""The keys of the TXT record that belong to the proof."""

RENEWED_SECONDS = 15 * 60.0
"""How often an announcer signs anew."""

_LIFE_MINUTES = 60
_CLOCKS_DIFFER_MINUTES = 15
_MAC_BYTES = 18
_MINUTE = 60
_DIGITS = 12


def sign(
    key: bytes, *, service: str, target: str, port: int, addresses: Collection[str], txt: Mapping[str, str]
) -> Mapping[str, str]:
    """Return what is to be added to the TXT record.

    Args:
        key: The secret.
        service: The whole name of the service.
        target: The host that the SRV record names.
        port: The port in it.
        addresses: The addresses of that host, without scopes.
        txt: The TXT record so far.
    """
    until = int(time.time()) // _MINUTE + _LIFE_MINUTES
    added = {ADDRESSES: ",".join(sorted(addresses)), UNTIL: str(until)}
    return {**added, PROOF: _mac(key, service, target, port, {**txt, **added})}


class UnprovenError(Exception):
    """A proof that does not hold; `str(error)` says why, as a clause."""


def check(key: bytes, *, service: str, target: str, port: int, txt: Mapping[str, str]) -> float:
    """Return until when the proof in a TXT record holds, in seconds since the epoch.

    Raises:
        UnprovenError: It does not hold.
    """
    expected = _mac(key, service, target, port, {name: value for name, value in txt.items() if name != PROOF})
    if not hmac.compare_digest(expected.encode(), txt.get(PROOF, "").encode(errors="replace")):
        raise UnprovenError("its proof of MDNS_SECRET does not fit: another secret, or somebody changed it")
    told, now = txt.get(UNTIL, ""), int(time.time()) // _MINUTE
    until = int(told) if told.isascii() and told.isdecimal() and len(told) < _DIGITS else 0
    if until <= now - _CLOCKS_DIFFER_MINUTES:
        raise UnprovenError("its proof of MDNS_SECRET is too old: a repetition, or a clock is wrong")
    if until > now + _LIFE_MINUTES + _CLOCKS_DIFFER_MINUTES:
        raise UnprovenError("its proof of MDNS_SECRET holds for too long: a clock is wrong")
    return float((until + _CLOCKS_DIFFER_MINUTES) * _MINUTE)


def _mac(key: bytes, service: str, target: str, port: int, txt: Mapping[str, str]) -> str:
    names = [one.lower().rstrip(".") for one in (service, target)]
    content = json.dumps(["opencode-mcp mdns 1", *names, port, sorted(txt.items())], separators=(",", ":"))
    return base64.urlsafe_b64encode(hmac.digest(key, content.encode(), hashlib.sha256)[:_MAC_BYTES]).decode()
