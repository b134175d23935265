"""`opencode-connected --headless`: what it starts, what it says, and what is announced."""

import stat

import pytest

from support.connected import Connected, eventually

pytestmark = pytest.mark.slow


def test_the_banner_says_once_on_stderr_all_that_a_person_needs(connected: Connected) -> None:
    with connected.announced() as started:
        registration = connected.registration()
        said = started.said
    assert said.count("opencode-connected") == 1
    [log] = connected.state.glob("*.log")
    rows = [line.split(":", 1) for line in said.splitlines()[2:-1]]
    assert {key.strip(): value.strip() for key, value in rows} == {
        "Instance": registration["name"],
        "Local port": str(registration["localPort"]),
        "Registry": str(connected.registry),
        "Relay": "(none, this machine only)",
        "CWD": str(connected.project),
        "Log": str(log),
    }
    assert started.out.read_text() == ""


def test_opencode_serve_is_started_where_it_was_asked_for_and_on_loopback(connected: Connected) -> None:
    with connected.announced():
        run, registration = connected.run(), connected.registration()
    port = str(registration["port"])
    assert run["argv"] == ["serve", "--port", port, "--hostname", "127.0.0.1"]
    assert run["cwd"] == registration["cwd"] == str(connected.project)
    assert (registration["version"], registration["transport"]) == ("1.18.33", "local-relay")
    assert run["stdin"] == "/dev/null"


def test_what_stands_behind_two_dashes_is_passed_on_as_it_is(connected: Connected) -> None:
    words = ["--model", "x/y", "--", "a b", "$(touch PWNED)", "--headless", "ü", ""]
    with connected.announced("--", *words):
        assert connected.run()["argv"][5:] == words
    assert not (connected.project / "PWNED").exists()


def test_a_command_of_ones_own_is_split_as_a_shell_would(connected: Connected) -> None:
    other = connected.home / "my open code"
    (connected.programs / "opencode").rename(other)
    with connected.announced(OPENCODE_MCP_COMMAND=f"'{other}' --first 'two words'"):
        assert connected.run()["argv"][:3] == ["--first", "two words", "serve"]


def test_a_port_of_ones_own_is_used(connected: Connected) -> None:
    with connected.announced() as started:
        port = connected.registration()["port"]
        started.signal(15)
        started.code()
    with connected.announced("--port", str(port)):
        assert connected.registration()["port"] == port


def test_state_and_log_are_for_the_user_only(connected: Connected) -> None:
    with connected.announced():
        modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in connected.state.iterdir()}
        assert stat.S_IMODE(connected.state.stat().st_mode) == 0o700
    assert {".json", ".log", ".lock"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_a_slow_opencode_is_announced_once_it_answers_and_not_before(connected: Connected) -> None:
    with connected.started("--headless", LIGHT_DOES="slow=0.8"):
        assert connected.run()
        assert connected.files() == []
        assert connected.registration()["version"] == "1.18.33"


def test_one_that_wants_another_password_is_announced_all_the_same(connected: Connected) -> None:
    with connected.announced(LIGHT_DOES="locked=other"):
        eventually(lambda: "wants another password" in connected.logs())
        assert "version" not in connected.registration()


def test_a_password_of_ones_own_reaches_opencode_and_nothing_else(connected: Connected) -> None:
    with connected.announced(OPENCODE_SERVER_PASSWORD="s3cret") as started:
        run = connected.run()
        assert run["environment"]["OPENCODE_SERVER_PASSWORD"] == "s3cret"
        assert "s3cret" not in str(run["argv"])
        assert "s3cret" not in started.said
        assert connected.registration()["version"] == "1.18.33"
        written = [path for path in [*connected.state.iterdir(), *connected.files()] if path.is_file()]
        assert [path for path in written if b"s3cret" in path.read_bytes()] == []
