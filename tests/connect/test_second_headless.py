"""`opencode-connected --headless` with OpenCode 2.x: `serve --stdio` as its child, and always a password."""

import signal
import socket
import sys

import pytest

from support.connected import PROMPTLY, Connected, eventually, patched

pytestmark = pytest.mark.slow


def test_serve_is_our_child_with_a_password_of_ours_in_its_environment(second: Connected) -> None:
    with second.announced() as started:
        run, registration = second.run(), second.registration()
        password = (second.state / "password").read_text().strip()
        status = second("status")
    port = str(registration["port"])
    assert run["argv"] == ["serve", "--stdio", "--port", port, "--hostname", "127.0.0.1"]
    assert registration["version"] == "2.1.2"
    assert registration["cwd"] == str(second.project)
    assert "pipe:" in run["stdin"]
    assert run["environment"]["OPENCODE_PASSWORD"] == password
    assert run["environment"]["OPENCODE_SERVER_PASSWORD"] == password
    assert f"generated, in {second.state}/password" in started.said
    assert (status.code, "2.1.2 answers at" in status.out) == (0, True), status
    written = [
        path for path in [*second.state.iterdir(), started.err, started.out] if path.name != "password"
    ]
    assert [path for path in written if password in path.read_text()] == []
    assert password not in str(run["argv"]) + str(registration) + status.out + status.err
    second.gone()


def test_a_password_of_ones_own_is_used_and_written_nowhere(second: Connected) -> None:
    with second.announced(OPENCODE_SERVER_PASSWORD="s3cret") as started:
        assert second.registration()["version"] == "2.1.2"
        assert second.run()["environment"]["OPENCODE_PASSWORD"] == "s3cret"
        sessions = second("sessions", OPENCODE_SERVER_PASSWORD="s3cret")
        assert "ses_1" in sessions.out, sessions
        assert "s3cret" not in started.said + second.logs() + sessions.out
    assert not (second.state / "password").exists()


def test_the_gateway_reaches_it_with_that_password(second: Connected) -> None:
    with second.announced(OPENCODE_SERVER_PASSWORD="s3cret"):
        listed = second.gateway("instances", "--json", OPENCODE_SERVER_PASSWORD="s3cret")
        assert '"status": "online"' in listed.out, listed
        without = second.gateway("instances", "--json")
        assert '"status": "needs credentials"' in without.out, without


def test_the_preview_answers_elsewhere_and_is_announced_all_the_same(second: Connected) -> None:
    with second.announced(LIGHT_DOES="version=2.0.0-preview,preview"):
        assert second.registration()["version"] == "2.0.0-preview"


def test_another_port_than_was_chosen_is_announced_if_it_says_so(second: Connected) -> None:
    program = patched("place.free_port = lambda *_: PORT")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = [word.replace("PORT", str(port)) for word in program]
        with second.announced(program=program):
            assert str(port) in second.run()["argv"]
            assert second.registration()["port"] != port
            assert second("status").code == 0


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("http://192.0.2.1:4096", "says that it does elsewhere"),
        ("http://127.0.0.1", "has not said where it listens"),
        ("http://u:p@127.0.0.1:1", "has not said where it listens"),
        ("", "has not said where it listens"),
        ("x", "has not said where it listens"),
    ],
)
def test_one_that_does_not_say_where_it_listens_is_ended(second: Connected, says: str, why: str) -> None:
    outcome = second(
        "--headless",
        program=patched("supervise._START_SECONDS = 0.5"),
        LIGHT_DOES=f"version=2.1.2,tells={says}",
    )
    assert outcome.code != 0
    assert why in outcome.err.splitlines()[-1]
    second.gone()


def test_it_is_announced_once_it_says_so_and_not_before(second: Connected) -> None:
    with second.started("--headless", LIGHT_DOES="version=2.1.2,slow=0.8"):
        assert second.run()
        assert second.files() == []
        assert second.registration()["version"] == "2.1.2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
def test_however_it_is_ended_opencode_ends_with_it(second: Connected, number: signal.Signals) -> None:
    with second.announced() as started:
        started.signal(number)
        started.code()
        eventually(lambda: not second.processes(), PROMPTLY)
    if number is signal.SIGKILL:
        assert second("cleanup").code == 0
    assert second.files() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel ends nothing")
def test_a_wrapper_does_not_keep_it_alive_when_we_are_killed(second: Connected) -> None:
    """The kernel ends what we started, not what that started in turn; a stdin that closes does."""
    opencode = second.programs / "opencode"
    opencode.write_text(opencode.read_text().replace("exec ", ""))
    with second.announced() as started:
        started.signal(signal.SIGKILL)
        started.code()
        eventually(lambda: not second.processes(), PROMPTLY)
    assert second("cleanup").code == 0


def test_it_is_asked_for_its_version_once(second: Connected) -> None:
    for _ in range(2):
        with second.announced():
            pass
        second.gone()
    assert (second.records / "asked").read_text() == "--version\n"


def test_an_update_to_2x_behind_the_same_script_is_noticed_at_the_second_start(connected: Connected) -> None:
    with connected.announced():
        connected.registration()
    connected.gone()
    newer = "version=2.1.2"
    outcome = connected("--headless", LIGHT_DOES=newer)
    assert outcome.code != 0, "started as 1.x, which it is not any more"
    with connected.announced(LIGHT_DOES=newer):
        assert connected.registration()["version"] == "2.1.2"


def test_one_that_says_no_version_is_taken_for_1x(connected: Connected) -> None:
    with connected.announced(LIGHT_DOES="mute"):
        assert connected.registration()["version"] == "1.18.33"
        assert "does not say its version" in connected.logs()
