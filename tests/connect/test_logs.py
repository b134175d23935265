"""The log of an instance: private, bounded, and silent about its own troubles."""

import logging
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from opencode_mcp.connect import logs
from opencode_mcp.connect.logs import start_logging
from support.logs import logging_as_before


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with logging_as_before():
        yield


def test_it_is_for_the_user_only_and_says_when_and_who(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    start_logging(path, level="WARNING", on_stderr=False)
    logging.getLogger("somebody").info("Hello %s", "\udcff")
    logging.getLogger("somebody").debug("Not this")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    [line] = path.read_text().splitlines()
    assert line.endswith(" INFO somebody: Hello \\udcff")


def test_at_debug_everything_is_in_it(tmp_path: Path) -> None:
    start_logging(tmp_path / "one.log", level="DEBUG", on_stderr=False)
    logging.getLogger("somebody").debug("This too")
    assert "This too" in (tmp_path / "one.log").read_text()


@pytest.mark.parametrize(("on_stderr", "said"), [(True, "opencode-connected: loud\n"), (False, "")])
def test_stderr_is_only_for_who_draws_nothing_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_stderr: bool, said: str
) -> None:
    start_logging(tmp_path / "one.log", level="WARNING", on_stderr=on_stderr)
    logging.getLogger("somebody").info("quiet")
    logging.getLogger("somebody").warning("loud")
    assert capsys.readouterr().err == said


def test_requests_that_a_transport_makes_again_and_again_are_not_in_it(tmp_path: Path) -> None:
    start_logging(tmp_path / "log", level="INFO", on_stderr=False)
    logging.getLogger("httpx2").info("HTTP Request: GET http://local-tailscaled.sock/")
    assert (tmp_path / "log").read_text() == ""


def test_warnings_go_into_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        start_logging(tmp_path / "one.log", level="WARNING", on_stderr=False)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert "old" in (tmp_path / "one.log").read_text()
    assert capsys.readouterr().err == ""


def test_a_full_log_is_rotated_and_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_BYTES", 1000)
    start_logging(tmp_path / "one.log", level="WARNING", on_stderr=False)
    for number in range(200):
        logging.getLogger("somebody").info("%d %s", number, "x" * 80)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["one.log", "one.log.1", "one.log.2", "one.log.3"]
    assert all(path.stat().st_size <= 1000 for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert "199" in files[0].read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_disturbs_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(Path("/dev/full"), level="WARNING", on_stderr=False)
    logging.getLogger("somebody").info("lost")
    assert capsys.readouterr() == ("", "")


def test_a_path_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.log").mkdir()
    with pytest.raises(IsADirectoryError):
        start_logging(tmp_path / "one.log", level="WARNING", on_stderr=False)
    with pytest.raises(FileNotFoundError):
        start_logging(tmp_path / "missing" / "one.log", level="WARNING", on_stderr=False)
