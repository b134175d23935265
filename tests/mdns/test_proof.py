"""The proof in an advertisement holds for exactly what it was made for, and not for ever."""

import base64
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from opencode_mcp_mdns import proof

KEY = b"correct horse battery staple"
SERVICE = "desk-0a1b2c._opencode._tcp.local."
TARGET = "opencode-0123456789ab.local."
ADDRESSES = ["192.168.1.20", "fe80::20"]
TXT = {"txtvers": "1", "id": "abc", "name": "desk", "auth": "basic", "host": "b\u00fcro"}
MINUTE = 60
THEN = 30_000_000
NOW = THEN * MINUTE + 30.5
"""In the middle of a minute."""

Clock = Callable[[float], None]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Set the time, in minutes from now."""

    def put(minutes: float) -> None:
        monkeypatch.setattr(proof, "time", SimpleNamespace(time=lambda: NOW + minutes * MINUTE))

    put(0)
    return put


def signed(**changes: str) -> dict[str, str]:
    added = proof.sign(KEY, service=SERVICE, target=TARGET, port=4096, addresses=ADDRESSES, txt=TXT)
    return {**TXT, **added, **changes}


def check(
    txt: dict[str, str],
    *,
    key: bytes = KEY,
    service: str = SERVICE,
    target: str = TARGET,
    port: int = 4096,
) -> str | None:
    """Return why a proof does not hold; None if it does."""
    try:
        proof.check(key, service=service, target=target, port=port, txt=txt)
    except proof.UnprovenError as error:
        return str(error)
    return None


def test_what_was_signed_holds() -> None:
    assert check(signed()) is None


def test_the_proof_is_three_keys_and_does_not_repeat_the_record() -> None:
    added = proof.sign(KEY, service=SERVICE, target=TARGET, port=4096, addresses=ADDRESSES, txt=TXT)
    assert set(added) == {"addrs", "until", "proof"}
    assert added["addrs"] == "192.168.1.20,fe80::20"
    assert added["until"] == str(THEN + 60)
    assert len(base64.urlsafe_b64decode(added["proof"])) == 18


def test_the_order_of_addresses_and_keys_makes_no_difference() -> None:
    turned = proof.sign(
        KEY,
        service=SERVICE,
        target=TARGET,
        port=4096,
        addresses=ADDRESSES[::-1],
        txt=dict(reversed(TXT.items())),
    )
    assert {**TXT, **turned} == signed()
    assert check(dict(reversed(signed().items()))) is None


@pytest.mark.parametrize("target", [TARGET.upper(), TARGET.removesuffix("."), "OpenCode-0123456789ab.local"])
def test_the_host_is_the_same_in_other_letters_and_without_the_last_dot(target: str) -> None:
    assert check(signed(), target=target) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", "abd"),
        ("name", "desk "),
        ("auth", "none"),
        ("host", "buro"),
        ("txtvers", "2"),
        ("addrs", "192.168.1.66"),
        ("addrs", "192.168.1.20,fe80::20,192.168.1.66"),
        ("addrs", "fe80::20,192.168.1.20"),
        ("addrs", ""),
        ("until", str(THEN + 61)),
        ("until", f"0{THEN + 60}"),
        ("until", ""),
        ("cwd", "added"),
    ],
)
def test_a_changed_record_is_refused(key: str, value: str) -> None:
    assert "does not fit" in (check(signed(**{key: value})) or "")


@pytest.mark.parametrize("left_out", ["id", "name", "addrs", "until", "host"])
def test_a_record_with_something_left_out_is_refused(left_out: str) -> None:
    txt = signed()
    del txt[left_out]
    assert "does not fit" in (check(txt) or "")


def test_another_host_or_port_is_refused() -> None:
    assert "does not fit" in (check(signed(), target="opencode.local.") or "")
    assert "does not fit" in (check(signed(), target="") or "")
    assert "does not fit" in (check(signed(), port=4097) or "")


def test_another_name_of_the_service_is_refused() -> None:
    """Who repeats what they heard under a name of their own gets nothing for it."""
    for name in (f"evil.{SERVICE}", SERVICE.replace("desk", "evil"), SERVICE.replace("_tcp", "_udp"), ""):
        assert "does not fit" in (check(signed(), service=name) or ""), name
    assert "does not fit" in (check(signed(), service=TARGET, target=SERVICE) or "")


@pytest.mark.parametrize("name", [SERVICE.upper(), SERVICE.removesuffix("."), SERVICE.title()])
def test_the_service_is_the_same_in_other_letters_and_without_the_last_dot(name: str) -> None:
    assert check(signed(), service=name) is None


def test_another_secret_is_refused() -> None:
    assert "another secret" in (check(signed(), key=KEY + b"!") or "")


def test_values_cannot_be_moved_into_their_neighbours() -> None:
    """`a` = `b=c` and `a=b` = `c` are different records."""
    one = proof.sign(KEY, service=SERVICE, target=TARGET, port=4096, addresses=[], txt={"a": "b=c"})
    assert check({"a=b": "c", **one}) is not None
    assert check({"c": "b=c", **one}) is not None
    other = proof.sign(KEY, service=SERVICE, target=TARGET, port=4096, addresses=[], txt={"a": 'x","b'})
    assert check({"a": "x", "b": "", **other}) is not None


def proof_of(text: str) -> Callable[[str], str]:
    return {
        "nothing": lambda _: "",
        "the first letters": lambda good: good[:-1],
        "one more letter": lambda good: good + "A",
        "other case": lambda good: good.swapcase(),
        "another letter": lambda good: ("A" if good[0] != "A" else "B") + good[1:],
    }[text]


@pytest.mark.parametrize(
    "what", ["nothing", "the first letters", "one more letter", "other case", "another letter"]
)
def test_a_proof_that_is_not_the_whole_of_it_is_refused(what: str) -> None:
    good = signed()
    assert check({**good, "proof": proof_of(what)(good["proof"])}) is not None


@pytest.mark.parametrize("minutes", [-15, -1, 0, 1, 59, 60, 74])
def test_it_holds_for_an_hour_and_clocks_may_differ_by_a_quarter(clock: Clock, minutes: float) -> None:
    txt = signed()
    clock(minutes)
    assert check(txt) is None


@pytest.mark.parametrize("minutes", [75, 76, 120, 24 * 60, 365 * 24 * 60])
def test_more_than_a_quarter_after_its_hour_it_is_too_old(clock: Clock, minutes: float) -> None:
    txt = signed()
    clock(minutes)
    assert "too old" in (check(txt) or "")


def test_until_when_it_holds_is_told_in_seconds() -> None:
    until = proof.check(KEY, service=SERVICE, target=TARGET, port=4096, txt=signed())
    assert until == (THEN + 60 + 15) * MINUTE


def test_it_is_refused_from_the_moment_on_until_which_it_holds(clock: Clock) -> None:
    txt = signed()
    until = proof.check(KEY, service=SERVICE, target=TARGET, port=4096, txt=txt)
    clock((until - NOW) / MINUTE - 0.01)
    assert check(txt) is None
    clock((until - NOW) / MINUTE + 0.01)
    assert "too old" in (check(txt) or "")


def test_an_announcer_renews_it_long_before_that() -> None:
    """Thrice while it holds even by a clock that is ahead: one renewal may be lost, or two."""
    assert proof.RENEWED_SECONDS == 15 * MINUTE


def test_an_old_proof_cannot_be_made_young(clock: Clock) -> None:
    old = signed()
    clock(60 * 1000)
    assert check({**old, "until": signed()["until"]}) is not None


UNTIL = [
    "",
    "soon",
    "+30000060",
    "3e7",
    "0x1c9c3bc",
    " 30000060",
    "٣٠٠٠٠٠٦٠",
    "²",
    "30000060.0",
    "\x00",
    "nan",
    "inf",
]


@pytest.mark.parametrize("until", UNTIL)
def test_a_moment_that_is_none_is_too_old_even_if_it_was_signed(until: str) -> None:
    txt = {**TXT, "addrs": "", "until": until}
    txt["proof"] = proof._mac(KEY, SERVICE, TARGET, 4096, txt)
    assert "too old" in (check(txt) or "")


def test_no_moment_at_all_is_too_old_even_if_it_was_signed() -> None:
    txt = {**TXT, "addrs": ""}
    txt["proof"] = proof._mac(KEY, SERVICE, TARGET, 4096, txt)
    assert "too old" in (check(txt) or "")


HOSTILE = ["", "\x00", "\x1b[31m", "\u202e", "\ud800", "\U0010ffff", "é" * 18, "x" * 8_000, "9" * 250]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("key", ["proof", "until", "addrs", "id", "", "\ud800", "x"])
def test_nothing_that_somebody_sends_raises(key: str, value: str) -> None:
    assert check({key: value}) is not None
    assert check(signed(**{key: value})) is not None


@pytest.mark.parametrize("value", HOSTILE)
def test_no_name_of_a_host_or_a_service_raises(value: str) -> None:
    assert check(signed(), target=value) is not None
    assert check(signed(), service=value) is not None


def test_an_empty_record_proves_nothing() -> None:
    assert check({}) is not None


@pytest.mark.parametrize("minutes", [16, 60, 24 * 60 * 365])
def test_a_proof_of_one_whose_clock_is_ahead_is_not_held_for_so_much_longer(
    clock: Clock, minutes: float
) -> None:
    clock(minutes)
    txt = signed()
    clock(0)
    assert "holds for too long: a clock is wrong" in (check(txt) or "")


def test_a_proof_of_one_whose_clock_is_a_quarter_ahead_holds_as_told(clock: Clock) -> None:
    clock(15)
    txt = signed()
    clock(0)
    assert (
        proof.check(KEY, service=SERVICE, target=TARGET, port=4096, txt=txt) == (THEN + 15 + 60 + 15) * MINUTE
    )


def test_a_number_too_long_for_a_minute_is_none_even_if_it_was_signed() -> None:
    for until in ("9" * 11, "9" * 12, "9" * 250):
        txt = {**TXT, "addrs": "", "until": until}
        txt["proof"] = proof._mac(KEY, SERVICE, TARGET, 4096, txt)
        expected = "too long" if len(until) < 12 else "too old"
        assert expected in (check(txt) or "")
