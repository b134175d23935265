"""Finding tailscaled: where it is looked for and in which order, and what is said when it is nowhere."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import httpcore2
import pytest

from opencode_mcp import TransportError
from opencode_mcp_tailscale import daemon as module
from opencode_mcp_tailscale.daemon import Daemon, find_daemon
from support.fake_tailscaled import FakeTailscaled
from tailscale.tailscale_parts import bare, free_port, settings

pytestmark = pytest.mark.anyio

NOBODY = 65_534
OPEN_FILES = module._open_files
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="Only root can be two users.")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare(monkeypatch, tmp_path)
    monkeypatch.setattr(module, "_LINUX", ())
    monkeypatch.setattr(module, "_MACOS", ())
    monkeypatch.setattr(module, "_MACOS_APP", tmp_path / "no app")
    monkeypatch.setattr(module, "_open_files", list)


@contextlib.contextmanager
def listening(path: Path) -> Generator[Path]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path


async def nowhere(platform: str = "linux", **given: Any) -> str:
    """Return what is said if it is nowhere."""
    with pytest.raises(TransportError) as caught:
        await find_daemon(settings(**given), platform=platform)
    return str(caught.value)


# The order


def test_the_usual_places_of_linux_come_in_this_order() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "from opencode_mcp_tailscale import daemon as d; print(*d._LINUX, *d._MACOS)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split() == [
        "/var/run/tailscale/tailscaled.sock",
        "/tmp/tailscaled.sock",
        "/var/packages/Tailscale/var/tailscaled.sock",
        "/var/packages/Tailscale/etc/tailscaled.sock",
        "/tmp/tailscale/tailscaled.sock",
        "/var/snap/tailscale/common/socket/tailscaled.sock",
        "/var/run/tailscaled.socket",
        "/var/run/tailscale/tailscaled.sock",
    ]


async def test_tailscale_socket_comes_before_ts_socket_and_that_before_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    monkeypatch.setattr(module, "_LINUX", (str(c),))
    with listening(a), listening(b), listening(c):
        found = [
            await find_daemon(settings(socket=str(a), container_socket=str(b)), platform="linux"),
            await find_daemon(settings(container_socket=str(b)), platform="linux"),
            await find_daemon(settings(), platform="linux"),
        ]
    assert [one.path for one in found] == [str(a), str(b), str(c)]
    assert [one.named for one in found] == [True, True, False]


async def test_of_the_usual_places_the_first_counts_that_accepts_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale, good, later = tmp_path / "stale", tmp_path / "good", tmp_path / "later"
    monkeypatch.setattr(module, "_LINUX", tuple(map(str, (tmp_path / "none", stale, good, later))))
    with listening(stale):
        pass
    with listening(good), listening(later):
        assert (await find_daemon(settings(), platform="linux")).path == str(good)


async def test_a_named_socket_that_does_not_answer_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINUX", (str(tmp_path / "good"),))
    with listening(tmp_path / "good"):
        said = await nowhere(socket=str(tmp_path / "none"))
    assert said == (
        f"tailscaled cannot be reached. Tried: {tmp_path}/none (not there). "
        "Correct TAILSCALE_SOCKET, or start tailscaled."
    )


# What is said


async def test_every_place_is_named_with_what_is_wrong_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINUX", (str(tmp_path / "none"), str(tmp_path / "stale")))
    with listening(tmp_path / "stale"):
        pass
    assert await nowhere() == (
        f"tailscaled cannot be reached. Tried: {tmp_path}/none (not there); {tmp_path}/stale (nobody listens "
        "there: tailscaled is not running). Start Tailscale, or set TAILSCALE_SOCKET to the path of its "
        "socket. In a container, mount the directory of the socket."
    )


async def test_of_a_wrong_ts_socket_it_is_that_which_is_to_be_corrected(tmp_path: Path) -> None:
    assert "Correct TS_SOCKET, or start tailscaled." in await nowhere(container_socket=str(tmp_path / "x"))


@pytest.mark.parametrize("kind", ["file", "folder", "below a file", "too long"])
async def test_what_is_no_socket_is_explained(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("")
    path = {"below a file": path / "y", "too long": tmp_path / ("x" * 200)}.get(kind, path)
    assert re.search(r"Tried: /.* \([A-Za-z_ ]{8,}.*\)\. ", await nowhere(socket=str(path)))


async def test_a_socket_in_a_folder_that_is_closed_to_the_user_is_a_matter_of_permission(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    with listening(folder / "s"):
        folder.chmod(0)
        try:
            with somebody_else() if os.geteuid() == 0 else contextlib.nullcontext():
                said = await nowhere(socket=str(folder / "s"))
        finally:
            folder.chmod(0o700)
    assert f"{folder}/s (no permission to connect to it)" in said


async def test_a_socket_whose_owner_accepts_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectTimeout

    monkeypatch.setattr("httpcore2.AnyIOBackend.connect_unix_socket", never)
    assert f"{tmp_path}/s (it does not answer)" in await nowhere(socket=str(tmp_path / "s"))


def test_control_characters_of_a_place_are_not_shown() -> None:
    assert str(Daemon(path="/a\x1b[31m\nb")) == "/a b"
    assert str(Daemon(port=80, token="secret")) == "127.0.0.1:80"
    assert "secret" not in repr(Daemon(port=80, token="secret"))


async def test_windows_is_told_what_to_use_instead(tmp_path: Path) -> None:
    said = await nowhere("win32", socket=str(tmp_path / "s"))
    assert said.startswith("TRANSPORT=tailscale is not supported on Windows")
    assert "Use static peers" in said


# Who runs it


@contextlib.contextmanager
def somebody_else() -> Generator[None]:
    """Be another user; only root can."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_user_who_listens_at_a_socket_is_told_by_the_kernel(tmp_path: Path) -> None:
    with listening(tmp_path / "s"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        assert module._peer(client) == (os.geteuid(), os.getpid())


@root_only
async def test_a_socket_that_another_user_runs_where_everybody_can_is_not_relied_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("open")
    os.chown(folder, NOBODY, NOBODY)
    monkeypatch.setattr(module, "_LINUX", (str(folder / "s"),))
    monkeypatch.setattr(module, "_ANYBODYS", f"{folder}/")
    for parent in (folder, *folder.parents):
        if parent.name.startswith(("open", "popen-", "pytest-")):
            parent.chmod(0o755)
    with somebody_else():
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(folder / "s"))
        server.listen()
    with server:
        said = await nowhere()
        assert f"{folder}/s (the user {NOBODY} runs it; if that is right, set TAILSCALE_SOCKET to it)" in said
        named = await find_daemon(settings(socket=str(folder / "s")), platform="linux")
        await (await named.connect(1)).aclose()
        monkeypatch.setattr(module, "_ANYBODYS", "/elsewhere/")  # as the user tailscale on Synology
        usual = await find_daemon(settings(), platform="linux")
        await (await usual.connect(1)).aclose()


def test_everybody_can_pretend_to_be_tailscaled_in_tmp_only() -> None:
    code = "from opencode_mcp_tailscale import daemon as d; print(*(p for p in d._LINUX + d._MACOS if "
    said = subprocess.run(
        [sys.executable, "-c", code + "p.startswith(d._ANYBODYS)))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split() == ["/tmp/tailscaled.sock", "/tmp/tailscale/tailscaled.sock"]


@pytest.mark.parametrize(
    ("user", "relied"), [(0, True), (4242, True), (None, True), (4243, False), (NOBODY, False)]
)
async def test_only_root_and_the_user_are_relied_on_where_everybody_can_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int | None, relied: bool
) -> None:
    monkeypatch.setattr(module, "_LINUX", (str(tmp_path / "s"),))
    monkeypatch.setattr(module, "_ANYBODYS", f"{tmp_path}/")
    monkeypatch.setattr(module, "_peer", lambda _: module._Peer(user, 1))
    monkeypatch.setattr("opencode_mcp_tailscale.daemon.os.geteuid", lambda: 4242)
    with listening(tmp_path / "s"):
        if relied:
            assert (await find_daemon(settings(), platform="linux")).path
        else:
            assert f"the user {user} runs it" in await nowhere()
        monkeypatch.setattr(module, "_ANYBODYS", f"{tmp_path}/elsewhere/")
        assert (await find_daemon(settings(), platform="linux")).path


async def test_who_runs_it_is_looked_at_for_every_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINUX", (str(tmp_path / "s"),))
    monkeypatch.setattr(module, "_ANYBODYS", f"{tmp_path}/")
    with listening(tmp_path / "s"):
        found = await find_daemon(settings(), platform="linux")
        monkeypatch.setattr(module, "_peer", lambda _: module._Peer(os.geteuid() + 1, 1))
        with pytest.raises(httpcore2.ConnectError, match="runs it"):
            await found.connect(1)


# Where it is


@pytest.mark.parametrize(
    ("here", "there", "elsewhere"),
    [
        ("net:[1]", "net:[2]", True),
        ("net:[1]", "net:[1]", False),
        ("net:[1]", "", False),  # another user's process, or one that is not to be seen
        ("", "net:[2]", False),
    ],
)
@pytest.mark.parametrize("process", [4711, None])
async def test_a_process_that_can_be_seen_in_another_network_is_elsewhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    here: str,
    there: str,
    elsewhere: bool,
    process: int | None,
) -> None:
    for name, network in (("self", here), ("4711", there)):
        (tmp_path / name / "ns").mkdir(parents=True)
        if network:
            (tmp_path / name / "ns" / "net").symlink_to(network)
    monkeypatch.setattr(module, "_PROCESSES", tmp_path)
    monkeypatch.setattr(module, "_peer", lambda _: module._Peer(0, process))
    with listening(tmp_path / "s") as path:
        found = await find_daemon(settings(socket=str(path)))
    assert found.elsewhere is (elsewhere and process is not None)


async def test_a_tailscaled_that_runs_here_is_not_elsewhere(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as path:
        assert not (await find_daemon(settings(socket=str(path)))).elsewhere


# macOS


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    monkeypatch.setattr(module, "_MACOS_APP", folder)
    return folder


def standalone(folder: Path, port: int, token: str | None = "secret\n") -> None:
    (folder / "ipnport").symlink_to(str(port))
    if token is not None:
        (folder / f"sameuserproof-{port}").write_text(token)


async def test_the_app_of_macos_is_found_by_its_link_and_file(app: Path) -> None:
    async with FakeTailscaled(token="secret") as fake:
        standalone(app, fake.port)
        found = await find_daemon(settings(), platform="darwin")
    assert found == Daemon(port=fake.port, token="secret")
    assert found.headers == {"Authorization": "Basic OnNlY3JldA=="}


def test_a_daemon_at_a_socket_wants_no_token() -> None:
    assert Daemon(path="/x").headers == {}


async def test_the_app_of_the_store_comes_first_and_the_socket_last(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MACOS", (str(tmp_path / "s"),))
    async with FakeTailscaled(tmp_path / "s", token="a") as one, FakeTailscaled(token="b") as two:
        standalone(app, two.port, "b")
        path = f"/Users/a/Library/Group Containers/x.tailscale.ipn.macos/sameuserproof-{one.port}-a-b"
        monkeypatch.setattr(module, "_open_files", lambda: ["/dev/null", path])
        assert await find_daemon(settings(), platform="darwin") == Daemon(port=one.port, token="a-b")
        monkeypatch.setattr(module, "_open_files", list)
        assert await find_daemon(settings(), platform="darwin") == Daemon(port=two.port, token="b")
        (app / "ipnport").unlink()
        assert (await find_daemon(settings(), platform="darwin")).path == str(tmp_path / "s")


async def test_a_port_that_is_left_from_before_is_passed_over_and_named(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    standalone(app, port)
    monkeypatch.setattr(module, "_MACOS", (str(tmp_path / "s"),))
    said = await nowhere("darwin")
    assert f"127.0.0.1:{port} (nobody listens there: tailscaled is not running)" in said
    assert f"{tmp_path}/s (not there)" in said
    assert "secret" not in said
    with listening(tmp_path / "s"):
        assert (await find_daemon(settings(), platform="darwin")).path == str(tmp_path / "s")


@pytest.mark.parametrize("target", ["x", "", "0", "-5", "65536", "99999999", "../../etc"])
def test_a_link_that_names_no_port_is_passed_over(app: Path, target: str) -> None:
    if target:
        (app / "ipnport").symlink_to(target)
        (app / f"sameuserproof-{target.replace('/', '')}").write_text("secret")
    assert list(module._macos_standalone(app)) == []


def test_a_token_that_makes_no_sense_is_passed_over(app: Path) -> None:
    standalone(app, 5, None)
    assert list(module._macos_standalone(app)) == []
    (app / "sameuserproof-5").write_bytes(b"\xff\xfe")
    assert list(module._macos_standalone(app)) == []


async def test_a_token_that_only_administrators_can_read_is_named(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standalone(app, 5)
    monkeypatch.setattr(module, "_MACOS", (str(tmp_path / "s"),))
    for parent in (app, *app.parents):
        if parent.name.startswith(("app", "test_", "popen-", "pytest-")):
            parent.chmod(0o755)
    (app / "sameuserproof-5").chmod(0)
    with somebody_else() if os.geteuid() == 0 else contextlib.nullcontext():
        said = await nowhere("darwin")
    assert said.startswith(
        f"tailscaled cannot be reached. Tried: {app}/sameuserproof-5 (no permission: only administrators can "
        f"read it); {tmp_path}/s (not there). "
    )
    with listening(tmp_path / "s"):
        assert (await find_daemon(settings(), platform="darwin")).path == str(tmp_path / "s")


@pytest.mark.parametrize(
    "name",
    [
        "/x.tailscale.ipn.macos/sameuserproof-80",
        "/x.tailscale.ipn.macos/sameuserproof-80-",
        "/x.tailscale.ipn.macos/sameuserproof--token",
        "/x.tailscale.ipn.macos/sameuserproof-0-token",
        "/x.tailscale.ipn.macos/sameuserproof-65536-token",
        "/x.tailscale.ipn.macos/sameuserproof-\u0663-token",
        "/x.tailscale.ipn.macos/other-80-token",
        "/tmp/sameuserproof-80-token",
        "",
    ],
)
def test_an_open_file_that_is_not_the_apps_is_passed_over(name: str) -> None:
    assert list(module._macos_store([name])) == []


def test_lsof_is_asked_for_the_users_own_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    commands: list[list[str]] = []

    def run(command: list[str], **given: Any) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        assert given["timeout"] <= 5
        out = "p123\nfcwd\nn/\nf12\nn/x.tailscale.ipn.macos/sameuserproof-80-t\n"
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert module._open_files() == ["/", "/x.tailscale.ipn.macos/sameuserproof-80-t"]
    assert commands[0][1:] == ["-n", "-a", f"-u{os.getuid()}", "-c", "IPNExtension", "-F", "n"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
        (subprocess.TimeoutExpired("lsof", 3), "does not answer"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(), "cannot be run"),
    ],
)
async def test_without_lsof_the_other_variants_are_tried_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(module, "_open_files", OPEN_FILES)
    monkeypatch.setattr(module, "_MACOS", (str(tmp_path / "s"),))
    told = f"the app of the App Store (lsof, which would tell its port, {why}); {tmp_path}/s (not there)."
    assert told in await nowhere("darwin")
    with listening(tmp_path / "s"):
        assert (await find_daemon(settings(), platform="darwin")).path == str(tmp_path / "s")


async def test_looking_does_not_block_the_event_loop(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = anyio.Event()
    token = anyio.lowlevel.current_token()

    def slow() -> list[str]:
        anyio.from_thread.run_sync(started.set, token=token)
        return []

    monkeypatch.setattr(module, "_open_files", slow)
    async with anyio.create_task_group() as group:
        group.start_soon(nowhere, "darwin")
        with anyio.fail_after(5):
            await started.wait()
