"""What needs no sshd: the setting, what is said of an end, and that every sh takes values for values."""

import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from local_relay.ssh_parts import instance
from opencode_mcp import SettingsError
from opencode_mcp.settings import read_settings
from opencode_mcp_local_relay import LocalRelaySettings, opencode_mcp_transports
from opencode_mcp_local_relay.control import control_path
from opencode_mcp_local_relay.ending import NO_MULTIPLEXING, ending
from opencode_mcp_local_relay.login import hidden
from opencode_mcp_local_relay.registration import id_prefix, numbered, stem_of
from opencode_mcp_local_relay.relay import quoted_path
from opencode_mcp_local_relay.script import SCRIPT

SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox", "ksh", "mksh", "zsh") if shutil.which(shell)]
HELL = "'; touch PWNED; $(touch PWNED) `touch PWNED` \" \\ \\n \\0 %s %n ! !! * ~ ü 日 \n -rf"


def run(shell: str, script: str, **how: Any) -> "subprocess.CompletedProcess[bytes]":
    command = [shell, "sh"] if shell == "busybox" else [shell]
    return subprocess.run(command, input=script.encode(), capture_output=True, timeout=10, **how)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RELAY_REGISTRY_DIR", "RELAY_SSH_CMD", "RELAY_TRUST_ANY_OWNER", "RELAY_PRUNE_AFTER_MS"):
        monkeypatch.delenv(name, raising=False)


def test_the_command_is_taken_apart_as_a_shell_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_SSH_CMD", "gcloud compute ssh 'my vm' --zone=z --")
    settings = read_settings(LocalRelaySettings)
    assert settings.ssh_words == ("gcloud", "compute", "ssh", "my vm", "--zone=z", "--")
    assert settings.ssh_shown == "gcloud …"
    assert "zone" not in repr(settings)
    monkeypatch.setenv("RELAY_SSH_CMD", "")
    assert read_settings(LocalRelaySettings).ssh_words == ()


@pytest.mark.parametrize("value", ["ssh 'secret", "   ", "''", "secret\\"])
def test_a_command_that_is_none_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RELAY_SSH_CMD", value)
    with pytest.raises(SettingsError, match=r"^RELAY_SSH_CMD cannot be used: it takes ") as error:
        read_settings(LocalRelaySettings)
    assert "secret" not in str(error.value)


def test_on_a_relay_the_directory_is_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_SSH_CMD", "ssh me@relay")
    for written in ("/srv/x", "~/x", "~"):
        monkeypatch.setenv("RELAY_REGISTRY_DIR", written)
        assert read_settings(LocalRelaySettings).relay_dir == written
    for written in ("relative", "./x", "~root/x"):
        monkeypatch.setenv("RELAY_REGISTRY_DIR", written)
        with pytest.raises(SettingsError, match="with RELAY_SSH_CMD an absolute one"):
            read_settings(LocalRelaySettings)


def test_announcing_tells_where_and_of_the_command_only_the_first_word() -> None:
    (plugin,) = opencode_mcp_transports()
    assert plugin.announcing is not None
    here = plugin.announcing(LocalRelaySettings.model_validate({"registry_dir": "/srv/x"}))
    assert here.listen == "127.0.0.1"
    assert here.facts == {"Registry": "/srv/x", "Relay": "(none, this machine only)"}
    assert (here.place, here.reachable_by) == ("here:/srv/x", "")
    there = plugin.announcing(
        LocalRelaySettings.model_validate(
            {"registry_dir": "~/x", "ssh_cmd": "sshpass -p secret ssh me@relay"}
        )
    )
    assert there.facts == {"Registry": "~/x", "Relay": "sshpass …"}
    assert re.fullmatch("relay:[0-9a-f]{16}:~/x", there.place)
    assert there.reachable_by == "everybody with an account on the relay"
    other = plugin.announcing(LocalRelaySettings.model_validate({"registry_dir": "~/x", "ssh_cmd": "ssh b"}))
    assert other.place != there.place


def test_of_what_ssh_says_the_words_of_the_command_are_hidden() -> None:
    hide = hidden(["ssh", "-o", "Token=s3cret.", "me@relay", "-p", "22"])
    assert hide("me@relay: Permission denied (Token=s3cret., s3cret., port 22)") == (
        "…: Permission denied (…, …, port 22)"
    )
    assert hidden(["ssh"])("ssh: me@relay") == "ssh: me@relay"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Host key verification failed.", "host key"),
        ("me@relay: Permission denied (publickey).", "refused the login"),
        ("ssh: Could not resolve hostname relay: Name or service not known", "name is not known"),
        ("ssh: connect to host relay port 22: Connection refused", "cannot be reached"),
        ("ssh: connect to host relay port 22: Connection timed out", "cannot be reached"),
        ("ssh: connect to host relay port 22: No route to host", "cannot be reached"),
        ("Timeout, server relay not responding.", "connection to the relay broke"),
        ("client_loop: send disconnect: Broken pipe", "connection to the relay broke"),
        ("Error: remote port forwarding failed for listen port 0", "AllowTcpForwarding"),
        ("bash: sh: command not found", "lets nobody run `sh`"),
        ("ERROR: (gcloud.compute.ssh) no project", "exit code 255: ERROR: (gcloud.compute.ssh) no project"),
    ],
)
def test_an_end_is_told_by_what_ssh_said(line: str, told: str) -> None:
    said = str(ending(["Warning: something", line], 255, "ssh …"))
    assert told in said
    assert line.rstrip(".") in said
    assert "`ssh …`" in said


def test_an_end_without_a_word_is_told_too() -> None:
    assert "ended with exit code 1." in str(ending([], 1, "ssh …"))
    assert "closed the connection." in str(ending([], None, "ssh …"))


@pytest.mark.parametrize(
    "line",
    [
        "command-line: line 0: Bad configuration option: controlmaster",
        "unknown option -- o",
        "error: unrecognized arguments: -o",
        "unix_listener: cannot bind to path /tmp/x: No such file or directory",
    ],
)
def test_an_ssh_that_knows_no_control_sockets_is_recognised(line: str) -> None:
    assert NO_MULTIPLEXING.search(line)


def test_a_name_gets_the_number_of_its_file() -> None:
    assert numbered("a b", "a-b.json") == "a b"
    assert numbered("a b", "a-b-12.json") == "a b-12"
    long = "x" * 200
    assert numbered(long, f"{stem_of(long)}-2.json") == "x" * 198 + "-2"


def test_a_control_socket_has_a_place_whatever_the_temporary_directory_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for directory in ("/" + "x" * 200, "/with %h and spaces"):
        monkeypatch.setattr("tempfile.tempdir", directory)
        path = control_path("any id")
        assert path is not None
        assert path.is_relative_to("/tmp")
        assert path == control_path("any id")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_sh_takes_values_for_values(shell: str, tmp_path: Path) -> None:
    directory = tmp_path / HELL.replace("/", "")
    endpoint = instance("http://127.0.0.1:1", id="id '$(touch PWNED)' \\u00e9 ü")
    prefix = id_prefix(endpoint.id)
    content = f"{prefix} {shlex.quote(HELL).replace(chr(10), '')}}}"
    script = f"""{SCRIPT}
d={quoted_path(str(directory))} t=$d/.t prefix={shlex.quote(prefix)} size={len(prefix)} trust=
q=1
put a.json {shlex.quote(content)}
put a.json {shlex.quote(content)}
prefix=other
put a.json {shlex.quote(content)}
drop a.json
prefix={shlex.quote(prefix)}
find_ours ''
drop a.json
find_ours 1
"""
    done = run(shell, script, cwd=tmp_path)
    lines = [line for line in done.stdout.decode().split("\n") if line.startswith("1 ")]
    first_line = str(directory).partition("\n")[0]
    assert lines == [
        f"1 = ok {first_line}",
        f"1 = ok {first_line}",
        "1 = taken",
        "1 = ok",
        f"1 {directory}/a.json".replace("\n", " "),
        f"1 {content}",
        "1 = ok",
        "1 = ok",
        "1 = ok",
    ]
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == [directory]
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_a_link_that_comes_at_the_last_moment_is_not_followed(shell: str, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / ".t").symlink_to(tmp_path / "target")
    variables = f"d={tmp_path} t={tmp_path}/.t prefix='{{' size=1 trust= q=1"
    done = run(shell, f"{SCRIPT}\nrm() {{ :; }}\n{variables}\nput a.json '{{}}'", cwd=tmp_path)
    assert b"\n1 = write " in done.stdout
    assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_home_is_the_one_of_who_runs_the_shell(shell: str) -> None:
    for written, meant in (("~", "/h x"), ("~/a 'b'", "/h x/a 'b'"), ("/a ~", "/a ~")):
        done = run(shell, f"printf %s {quoted_path(written)}", env={**os.environ, "HOME": "/h x"})
        assert done.stdout.decode() == meant


@pytest.mark.parametrize("shell", SHELLS)
def test_every_sh_lists_files_of_any_name_and_content_as_one_line_each(shell: str, tmp_path: Path) -> None:
    directory = tmp_path / HELL.replace("/", "")
    directory.mkdir(0o700)
    name = HELL.replace("/", "").replace("\n", " ") + " * .json"
    (directory / name).write_bytes(b"{\n  %s \\n $HOME * '\n\n}\n")
    (directory / "large.json").write_bytes(b"x" * 70_000)
    (directory / "open.json").touch()
    (directory / "open.json").chmod(0o666)
    (directory / "link.json").symlink_to("large.json")
    (directory / "new\nline.json").touch()
    variables = f"d={quoted_path(str(directory))} trust= q=1"
    done = run(shell, f"{SCRIPT}\n{variables}\nlist 9\ntrust=1\nlist 1\nd=$d/none\nlist 9\n", cwd=tmp_path)
    lines = [line[2:].rstrip() for line in done.stdout.decode().split("\n") if line.startswith("1 ")]
    expected = {
        f"/{name}/{{   %s \\n $HOME * ' }}",
        "/large.json/" + "x" * 65537,
        "open/open.json/",
        "special/link.json/",
        "name/new line.json/",
    }
    assert set(lines[:5]) == expected
    assert lines[5:] == ["= ok safe", lines[0], "= ok safe more", "= ok safe"]
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == [directory]


def said(shell: str, script: str) -> list[str]:
    done = run(shell, f"{SCRIPT}\nq=1\n{script}\n")
    return [line[2:] for line in done.stdout.decode().split("\n") if line.startswith("1 ")]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("address", "reply"),
    [("127.0.0.1", "= ok"), ("127.1.2.3", "= ok"), ("::1", "= ok"), ("0.0.0.0", "= open"), ("::", "= open")],
)
def test_a_port_that_the_network_reaches_is_told_from_one_of_the_relay_itself(
    shell: str, address: str, reply: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            pytest.skip(f"this machine has no {address}")
        sock.listen()
        port = sock.getsockname()[1]
        without = "dd() { :; }\n"
        tools = [tool for tool in ("ss", "netstat") if shutil.which(tool)]
        only = {"ss": "netstat() { :; }\n", "netstat": "ss() { :; }\n"}
        for before in ("", *(without + only[tool] for tool in tools)):
            assert said(shell, f"{before}exposed {port}") == [reply]
        sock.close()
        assert said(shell, f"exposed {port}") == ["= ok"]


@pytest.mark.parametrize("shell", SHELLS)
def test_where_nothing_lists_ports_nobody_can_tell(shell: str) -> None:
    nothing = "dd() { :; }\nss() { :; }\nnetstat() { :; }\n"
    assert said(shell, f"{nothing}exposed 22") == ["= unknown"]
    for line, reply in (("*.22  *.*", "open"), ("127.0.0.1.22  *.*", "ok"), ("::1.22  *.*", "ok")):
        of_macos = f"netstat() {{ echo 'tcp4  0  0  {line}  LISTEN'; }}\n"
        assert said(shell, f"{nothing}{of_macos}exposed 22") == [f"= {reply}"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_file_that_cannot_be_removed_is_told(shell: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    before = f"rm() {{ echo 'no way'; return 1; }}\nd={tmp_path} t={tmp_path}/.t prefix='{{' size=1"
    assert said(shell, f"{before}\ndrop a.json") == ["= remove no way"]
