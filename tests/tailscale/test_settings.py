"""Environment variables of tailscale: what they take, and what is said of those that cannot be used."""

from pathlib import Path

import pytest

from opencode_mcp import SettingsError
from opencode_mcp.settings import documented, read_settings
from opencode_mcp_tailscale import TailscaleSettings
from tailscale.tailscale_parts import VARIABLES, bare

TAKES = {
    documented(field).variable: documented(field).takes for field in TailscaleSettings.model_fields.values()
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare(monkeypatch, tmp_path)


def refused(**environment: str) -> str:
    """Return what is said of unusable variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SettingsError) as caught:
            read_settings(TailscaleSettings)
    return str(caught.value)


def accepted(**environment: str) -> TailscaleSettings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return read_settings(TailscaleSettings)


def test_tailscale_reads_these_variables_with_these_defaults() -> None:
    assert list(TAKES) == VARIABLES
    assert read_settings(TailscaleSettings).model_dump() == {
        "socket": "",
        "container_socket": "",
        "index_port": 14096,
        "ports": (4096,),
        "users": (),
        "tags": (),
        "peers": (),
        "allow_shared": False,
        "allow_users": (),
        "forget_after_ms": 600_000,
    }


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_is_like_none(name: str) -> None:
    assert accepted(**{name: ""}) == read_settings(TailscaleSettings)


def test_no_field_is_read_by_its_own_name() -> None:
    assert accepted(ports="22", users="eve", allow_shared="1") == read_settings(TailscaleSettings)


GOOD: list[tuple[str, str, str, object]] = [
    ("TAILSCALE_SOCKET", "/run/my socket", "socket", "/run/my socket"),
    ("TS_SOCKET", "/tmp/tailscaled.sock", "container_socket", "/tmp/tailscaled.sock"),
    ("TAILSCALE_INDEX_PORT", "1", "index_port", 1),
    ("TAILSCALE_INDEX_PORT", "65535", "index_port", 65535),
    ("TAILSCALE_PORTS", "4096", "ports", (4096,)),
    ("TAILSCALE_PORTS", " 4097, 4096,,4097 ,65535", "ports", (4097, 4096, 65535)),
    ("TAILSCALE_PORTS", ",".join(map(str, range(1, 17))), "ports", tuple(range(1, 17))),
    ("TAILSCALE_USERS", "ann@example.com, Bob@github", "users", ("ann@example.com", "Bob@github")),
    ("TAILSCALE_TAGS", "tag:ci,tag:Open-Code-2", "tags", ("tag:ci", "tag:Open-Code-2")),
    ("TAILSCALE_PEERS", "Box, box.ts.net., FD7A::1 ,nID", "peers", ("box", "box.ts.net", "fd7a::1", "nid")),
    ("TAILSCALE_ALLOW_SHARED", "1", "allow_shared", True),
    ("TAILSCALE_ALLOW_SHARED", "0", "allow_shared", False),
    ("TAILSCALE_ALLOW_USERS", "ann@example.com,tag:ci", "allow_users", ("ann@example.com", "tag:ci")),
    ("TAILSCALE_FORGET_AFTER_MS", "0", "forget_after_ms", 0),
    ("TAILSCALE_FORGET_AFTER_MS", "1000000000000000", "forget_after_ms", 10**15),
]


@pytest.mark.parametrize(("name", "value", "field", "expected"), GOOD)
def test_a_value_is_taken(name: str, value: str, field: str, expected: object) -> None:
    assert getattr(accepted(**{name: value}), field) == expected


BAD: list[tuple[str, str]] = [
    ("TAILSCALE_SOCKET", "/run/a\nb"),
    ("TS_SOCKET", "/run/\x7f"),
    *(("TAILSCALE_INDEX_PORT", odd) for odd in ("0", "65536", "-1", "x", "443", "8443", "10000", "4096,1")),
    *(("TAILSCALE_PORTS", odd) for odd in ("0", "65536", "a", ",", " , ", "4096-4100", "1.5")),
    ("TAILSCALE_PORTS", ",".join(map(str, range(1, 18)))),
    ("TAILSCALE_USERS", ","),
    ("TAILSCALE_USERS", "ann\x1b[31m"),
    *(("TAILSCALE_TAGS", odd) for odd in ("ci", "tag:", "tag:1a", "tag:a b", "TAG:a", "tag:ä")),
    ("TAILSCALE_TAGS", f"tag:{'a' * 64}"),
    ("TAILSCALE_PEERS", "a\tb"),
    ("TAILSCALE_PEERS", " ,"),
    ("TAILSCALE_ALLOW_SHARED", "maybe"),
    ("TAILSCALE_ALLOW_USERS", "tag:"),
    ("TAILSCALE_ALLOW_USERS", "ann\u202e"),
    *(("TAILSCALE_FORGET_AFTER_MS", odd) for odd in ("-1", "1.5", "soon", str(10**15 + 1))),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_that_cannot_be_used_is_refused_with_what_it_takes(name: str, value: str) -> None:
    said = refused(**{name: value})
    assert name in said
    assert TAKES[name] in said


def test_users_and_tags_are_compared_as_tailscale_does() -> None:
    settings = accepted(TAILSCALE_USERS="Ann@Example.com", TAILSCALE_TAGS="tag:ci")
    assert settings.logins == {"ann@example.com"}
    assert settings.tags_set == {"tag:ci"}
