"""What is started, where it listens, and who may talk to it."""

import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from opencode_mcp.connect import launch
from opencode_mcp.connect.launch import (
    announced_url,
    check_passed_on,
    environment_for,
    find_program,
    free_port,
    is_loopback,
    listening_address,
    local_url,
    password_for,
)
from opencode_mcp.errors import StartError
from opencode_mcp.settings import ConnectSettings


def settings(**given: Any) -> ConnectSettings:
    return ConnectSettings.model_validate({"server_password": None, **given})


@pytest.mark.parametrize(
    ("wanted", "address"),
    [
        ([], "127.0.0.1"),
        (["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        (["100.64.0.1"], "100.64.0.1"),
        (["100.64.0.1", "100.64.0.1"], "100.64.0.1"),
        (["127.0.0.1", "100.64.0.1"], "0.0.0.0"),
        (["0.0.0.0", "127.0.0.1"], "0.0.0.0"),
        (["::1"], "::1"),
    ],
)
def test_one_address_serves_all_transports(wanted: Sequence[str], address: str) -> None:
    assert listening_address(wanted) == address


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("1.127.0.0", False),
        ("", False),
    ],
)
def test_only_loopback_goes_without_a_password(tmp_path: Path, address: str, inside: bool) -> None:
    assert is_loopback(address) is inside
    password, path = password_for(address, settings(), tmp_path)
    assert (password is None, path is None) == (inside, inside)


@pytest.mark.parametrize(
    ("address", "here", "announced"),
    [
        ("127.0.0.1", "http://127.0.0.1:4096", "http://127.0.0.1:4096"),
        ("0.0.0.0", "http://127.0.0.1:4096", "http://0.0.0.0:4096"),
        ("::", "http://[::1]:4096", "http://[::]:4096"),
        ("fd7a::1", "http://[fd7a::1]:4096", "http://[fd7a::1]:4096"),
    ],
)
def test_an_address_makes_a_url_for_here_and_one_to_announce(address: str, here: str, announced: str) -> None:
    assert (local_url(address, 4096), announced_url(address, 4096)) == (here, announced)


def test_a_password_is_made_up_once_and_kept_for_the_user_only(tmp_path: Path) -> None:
    password, path = password_for("0.0.0.0", settings(), tmp_path)
    assert path is not None
    assert path == tmp_path / "password"
    assert password is not None
    assert len(password) >= 43, "256 bits"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert password_for("0.0.0.0", settings(), tmp_path) == (password, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = tmp_path / "other"
    other.mkdir()
    assert password_for("0.0.0.0", settings(), other)[0] != password


def test_an_empty_password_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "password").touch()
    with pytest.raises(StartError, match=r"/password is to hold a password, and is empty"):
        password_for("0.0.0.0", settings(), tmp_path)


def test_nothing_but_the_password_is_left_where_it_is_kept(tmp_path: Path) -> None:
    password_for("0.0.0.0", settings(), tmp_path)
    password_for("0.0.0.0", settings(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["password"]


def test_a_password_of_ones_own_is_used_and_written_nowhere(tmp_path: Path) -> None:
    own = settings(server_password="s3cret")
    for address in ("0.0.0.0", "127.0.0.1"):
        assert password_for(address, own, tmp_path) == ("s3cret", None)
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_for_the_password_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "password").mkdir()
    with pytest.raises(StartError, match=r"password cannot be kept in .*/password: Is a directory"):
        password_for("0.0.0.0", settings(), tmp_path)


def test_the_password_goes_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "stays")
    monkeypatch.delenv("OPENCODE_SERVER_PASSWORD", raising=False)
    assert environment_for("s3cret") == {**os.environ, "OPENCODE_SERVER_PASSWORD": "s3cret"}
    assert environment_for(None) == os.environ


def test_that_of_2x_has_it_by_its_own_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCODE_PASSWORD", "of something else")
    found = environment_for("s3cret", second=True)
    assert (found["OPENCODE_PASSWORD"], found["OPENCODE_SERVER_PASSWORD"]) == ("s3cret", "s3cret")


def test_a_password_is_made_up_on_loopback_too_for_who_never_goes_without(tmp_path: Path) -> None:
    password, path = password_for("127.0.0.1", settings(), tmp_path, always=True)
    assert (password is None, path) == (False, tmp_path / "password")
    assert password_for("127.0.0.1", settings(server_password="own"), tmp_path, always=True) == ("own", None)


def test_secrets_stay_out_of_the_environment_but_for_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "stays")
    monkeypatch.setenv("PLUGIN_TOKEN", "hunter2")
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "s3cret")
    secrets = {"PLUGIN_TOKEN", "PLUGIN_UNSET", "OPENCODE_SERVER_PASSWORD"}
    without = {name: value for name, value in os.environ.items() if name != "PLUGIN_TOKEN"}
    assert environment_for(None, secrets) == without
    assert environment_for("another", secrets) == {**without, "OPENCODE_SERVER_PASSWORD": "another"}
    assert os.environ["PLUGIN_TOKEN"] == "hunter2", "our own stays: ssh may need it"


def test_a_port_that_is_taken_is_refused_if_it_was_wanted_and_else_avoided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(launch, "_PORTS", range(taken, taken + 1))
        with pytest.raises(StartError, match=f"Port {taken} of 127.0.0.1.*in use.*--port"):
            free_port("127.0.0.1", taken, ())
        with pytest.raises(StartError, match=f"None of the ports {taken} to {taken}"):
            free_port("127.0.0.1", None, ())
    assert free_port("127.0.0.1", None, ()) == taken


def test_a_port_that_another_instance_is_about_to_use_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_port("127.0.0.1", None, ())
    monkeypatch.setattr(launch, "_PORTS", range(free, free + 1))
    with pytest.raises(StartError, match="None of the ports"):
        free_port("127.0.0.1", None, {free})
    assert free_port("127.0.0.1", free, {free}) == free, "whoever asks for it gets it, if it is free"


def test_a_port_whose_last_connections_are_closing_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()  # the side that closes first waits
    assert free_port("127.0.0.1", port, ()) == port


@pytest.mark.parametrize("argument", ["--port", "--port=1", "--hostname", "--hostname=0.0.0.0"])
def test_where_it_listens_is_not_for_others_to_say(argument: str) -> None:
    with pytest.raises(StartError, match=f"{argument} cannot be passed on.*--port N") as error:
        check_passed_on(["--model", "x", argument, "1"])
    assert error.value.code == 2
    check_passed_on(["--portly", "port", "--hostnames=1", "-p"])


def test_a_program_is_found_on_path_or_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mine"
    program.write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match=r"no program 'mine' on PATH.*OPENCODE_MCP_COMMAND") as error:
        find_program(settings(command="mine --x"))
    assert error.value.code == 127
    program.chmod(0o755)
    assert find_program(settings(command="mine --x")) == [str(program), "--x"]
    assert find_program(settings(command=str(program))) == [str(program)]
