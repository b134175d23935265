"""What tailscaled says of the tailnet: as it is told, and as nobody would tell it."""

import ipaddress
import json
from typing import Any

import pytest

from opencode_mcp import TransportError
from opencode_mcp_tailscale.status import Machine, Status, Who
from support.fake_tailscaled import FakeTailscaled

PEER = {
    "ID": "n2CNTRL",
    "DNSName": "Box.tail1a2b.ts.net.",
    "HostName": "what it likes",
    "OS": "linux",
    "UserID": 11,
    "TailscaleIPs": ["fd7a:115c:a1e0::2", "100.64.0.2"],
    "Online": True,
    "InNetworkMap": True,
    "LastSeen": "0001-01-01T00:00:00Z",
}
SELF = {**PEER, "ID": "n1CNTRL", "DNSName": "desk.tail1a2b.ts.net.", "TailscaleIPs": ["100.64.0.1"]}
ANN = {"11": {"ID": 11, "LoginName": "ann@example.com", "DisplayName": "Ann"}}


def document(*peers: object, **told: Any) -> bytes:
    return json.dumps(
        {
            "BackendState": "Running",
            "TUN": True,
            "AuthURL": "",
            "Self": SELF,
            "CurrentTailnet": {"MagicDNSSuffix": "tail1a2b.ts.net"},
            "Peer": {f"nodekey:{number}": peer for number, peer in enumerate(peers)},
            "User": ANN,
            **told,
        }
    ).encode()


def peer(**told: Any) -> Machine:
    """The one peer, told of so."""
    [found] = Status.read(document({**PEER, **told})).peers
    return found


def test_a_status_is_read_as_tailscaled_writes_it() -> None:
    fake = FakeTailscaled(name="desk")
    fake.add_peer("box", user="bob@example.com", ips=("100.64.0.2", "fd7a:115c:a1e0::2"))
    fake.add_peer("ci", tags=("tag:ci", "tag:opencode"), online=False)
    status = Status.read(fake.tailnet.status())
    assert status.problem == ""
    assert status.kernel
    assert status.own is not None
    assert (status.own.id, status.own.name, status.own.user) == (
        "ndeskCNTRL",
        "desk.tail1a2b.ts.net",
        "ann@example.com",
    )
    box, ci = status.peers
    assert (box.short_name, box.owner, box.online) == ("box", "bob@example.com", True)
    assert (ci.user, ci.tags, ci.owner, ci.online) == (
        "",
        ("tag:ci", "tag:opencode"),
        "tag:ci, tag:opencode",
        False,
    )
    assert not any(one.shared or one.sharee or one.expired or one.mullvad for one in status.peers)


def test_addresses_are_those_of_the_tailnet_with_ipv4_first() -> None:
    assert peer().addresses == (
        ipaddress.ip_address("100.64.0.2"),
        ipaddress.ip_address("fd7a:115c:a1e0::2"),
    )
    known = "fd7a:115c:a1e0:ab12::1"
    assert peer(TailscaleIPs=[known]).addresses == (ipaddress.ip_address(known),)


@pytest.mark.parametrize(
    "odd",
    [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "::",
        "224.0.0.251",
        "ff02::fb",
        "169.254.169.254",
        "fe80::1",
        "fd7a:115c:a1e0::1%eth0",
        "fd7a:115c:a1e0::1%\n",
        "192.168.1.5",
        "8.8.8.8",
        "fd7a::1",
        "::ffff:100.64.0.2",
        "box",
        "100.64.0.1:80",
        "",
        7,
        None,
        ["100.64.0.2"],
    ],
)
def test_other_addresses_are_left_out(odd: object) -> None:
    assert list(map(str, peer(TailscaleIPs=[odd, "100.64.0.2"]).addresses)) == ["100.64.0.2"]


@pytest.mark.parametrize("name", ["TailscaleIPs", "Tags", "DNSName", "UserID", "Online", "CurAddr"])
def test_what_is_null_or_of_another_kind_is_as_if_it_were_not_there(name: str) -> None:
    bare = peer(**{name: None})
    for odd in ({}, {"a": 1}, 1.5, "\ud800" if name != "CurAddr" else 7):
        assert peer(**{name: odd}) == bare


def test_a_status_in_which_everything_is_null_has_no_peers() -> None:
    status = Status.read(document(Peer=None, User=None, CurrentTailnet=None, Health=None))
    assert (list(status.peers), status.malformed, status.problem) == ([], 0, "")
    assert status.own is not None
    assert status.own.owner == "user 11"


@pytest.mark.parametrize("known", ["", None, 7, "a b", "a\n", "ä", "x" * 129, "\x1b"])
def test_a_machine_without_a_usable_id_is_counted_and_left_out(known: object) -> None:
    status = Status.read(document({**PEER, "ID": known}, PEER, None, "nonsense"))
    assert ([one.id for one in status.peers], status.malformed) == (["n2CNTRL"], 3)


@pytest.mark.parametrize(
    "name", ["a b.ts.net", "a\n.ts.net", ".ts.net", "a..b/c", "-", "ä.ts.net", "x" * 300]
)
def test_a_name_that_is_none_is_left_out_and_the_machine_is_called_by_its_id(name: str) -> None:
    found = peer(DNSName=name)
    assert (found.name, found.short_name) == ("", "n2CNTRL")


def test_names_are_in_small_letters_without_a_dot_at_the_end() -> None:
    assert peer().name == "box.tail1a2b.ts.net"


def test_a_machine_is_online_if_it_says_so_and_is_on_the_map() -> None:
    assert peer().online
    assert peer(InNetworkMap=None).online  # older ones do not say
    assert not peer(InNetworkMap=False).online
    assert not peer(Online=False).online
    assert not peer(Online="yes").online


def test_a_machine_of_another_tailnet_is_shared() -> None:
    assert not peer().shared
    assert peer(AltSharerUserID=9).shared
    assert peer(DNSName="box.other.ts.net.").shared
    assert peer(DNSName="box.eviltail1a2b.ts.net.").shared
    assert not peer(DNSName="").shared


@pytest.mark.parametrize(
    "told",
    [
        {"CurrentTailnet": {"MagicDNSSuffix": "Tail1a2b.ts.net."}, "MagicDNSSuffix": ""},
        {"CurrentTailnet": None, "MagicDNSSuffix": "tail1a2b.ts.net"},
    ],
)
def test_the_suffix_is_that_of_the_tailnet_by_either_word(told: dict[str, Any]) -> None:
    foreign = {**PEER, "DNSName": "box.other.ts.net."}
    assert [one.shared for one in Status.read(document(PEER, foreign, **told)).peers] == [False, True]


def test_servers_of_mullvad_expired_keys_and_those_that_only_look_are_known() -> None:
    assert peer(DNSName="se-sto-wg-001.mullvad.ts.net.").mullvad
    assert not peer(DNSName="mullvad.tail1a2b.ts.net.").mullvad
    assert peer(Expired=True).expired
    assert peer(ShareeNode=True).sharee


def test_a_machine_with_traffic_is_busy() -> None:
    assert [peer(Active=True).busy, peer(CurAddr="1.2.3.4:5").busy, peer().busy] == [True, True, False]


def test_a_login_is_compared_as_it_is_and_shown_as_one_clean_line() -> None:
    login = "ann\x1b[31m\n@example.com" + "x" * 999
    [found] = Status.read(document(PEER, User={"11": {"ID": 11, "LoginName": login}})).peers
    assert found.user == login
    assert found.owner.startswith("ann @example.com")
    assert len(found.owner) == 200


@pytest.mark.parametrize("users", [None, [], {"11": None}, {"11": {"LoginName": "ann"}}, {"x": {"ID": "11"}}])
def test_without_a_user_nobody_owns_it(users: object) -> None:
    [found] = Status.read(document(PEER, User=users)).peers
    assert (found.user, found.owner) == ("", "user 11")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"Running"',
        b"<html>",
        b"\xff\xfe",
        b'{"BackendState": 6}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_status_is_refused(body: bytes) -> None:
    with pytest.raises(TransportError, match="tells its status in words that are not understood"):
        Status.read(body)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("NeedsLogin", "Tailscale is logged out: log in at https://login.example/a."),
        ("NeedsMachineAuth", "This machine waits to be approved by an administrator of the tailnet."),
        ("Stopped", "Tailscale is stopped: run `tailscale up`."),
        ("Starting", "Tailscale is starting."),
        ("NoState", "Tailscale is starting."),
        ("InUseOtherUser", "Another user of this machine uses Tailscale."),
        ("Dreaming", "Tailscale is not running: its state is Dreaming."),
        ("{x} {0}", "Tailscale is not running: its state is {x} {0}."),
        ("a\x1b[31m\nb", "Tailscale is not running: its state is a b."),
    ],
)
def test_a_tailscale_that_does_not_run_says_what_to_do(state: str, said: str) -> None:
    status = Status.read(document(BackendState=state, AuthURL="https://login.example/a", Self=None))
    assert status.problem == said


def test_without_a_login_url_the_command_is_named() -> None:
    assert Status.read(document(BackendState="NeedsLogin")).problem == (
        "Tailscale is logged out: log in with `tailscale up`."
    )


def test_a_key_that_has_expired_is_named() -> None:
    status = Status.read(document(Self={**SELF, "Expired": True}))
    assert status.problem == "The key of this machine has expired: run `tailscale up --force-reauth`."


@pytest.mark.parametrize(
    "told", [{"Expired": True, "KeyExpiry": "2020-01-01T00:00:00Z"}, {"KeyExpiry": "2020-01-01T00:00:00Z"}]
)
def test_a_key_that_has_expired_is_why_a_login_is_needed(told: dict[str, Any]) -> None:
    def problem(url: str) -> str:
        return Status.read(document(BackendState="NeedsLogin", AuthURL=url, Self={**SELF, **told})).problem

    assert problem("") == "The key of this machine has expired: run `tailscale up --force-reauth`."
    assert problem("https://login.example/a") == (
        "The key of this machine has expired: log in at https://login.example/a."
    )


@pytest.mark.parametrize(
    "expiry",
    [
        None,
        7,
        "",
        "soon",
        "0001-01-01T00:00:00Z",
        "2020-01-01T00:00:00",
        "2020-01-01",
        "2999-01-01T00:00:00Z",
    ],
)
def test_a_login_that_is_needed_for_another_reason_is_not_put_on_the_key(expiry: object) -> None:
    status = Status.read(document(BackendState="NeedsLogin", Self={**SELF, "KeyExpiry": expiry}))
    assert status.problem == "Tailscale is logged out: log in with `tailscale up`."


def test_a_tailscale_that_runs_knows_better_than_the_clock_when_its_key_expires() -> None:
    status = Status.read(document(Self={**SELF, "KeyExpiry": "2020-01-01T00:00:00.123456789Z"}))
    assert status.problem == ""


def test_running_without_a_machine_is_a_problem() -> None:
    assert Status.read(document(Self=None)).problem == "tailscaled does not say which machine this is."


def test_user_space_is_whatever_is_not_told_to_have_an_interface() -> None:
    assert [Status.read(document(TUN=one)).kernel for one in (True, False, None, "yes")] == [
        True,
        False,
        False,
        False,
    ]


def test_2000_peers_are_read() -> None:
    fake = FakeTailscaled()
    for _ in range(2000):
        fake.add_peer()
    status = Status.read(fake.tailnet.status())
    assert len({one.id for one in status.peers}) == 2000
    assert status.malformed == 0


def test_who_has_an_address_is_its_user_or_its_tags() -> None:
    ann = {"LoginName": "ann@example.com"}
    tagged = {"Node": {"Tags": ["tag:ci", 7]}, "UserProfile": ann}
    assert Who.read(json.dumps({"Node": {}, "UserProfile": ann}).encode()) == Who(
        user="ann@example.com", tags=()
    )
    assert Who.read(json.dumps(tagged).encode()) == Who(user="", tags=("tag:ci",))


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"Node": null, "UserProfile": []}', b"\xff"])
def test_who_is_not_understood_is_nobody(body: bytes) -> None:
    assert Who.read(body) == Who(user="", tags=())
