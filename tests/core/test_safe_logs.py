"""Logs: what a library says of the network, as it came, steers no terminal and forges no line."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opencode_mcp.connect import logs
from opencode_mcp.runtime import start_logging
from opencode_mcp.settings import CoreSettings
from support.logs import logging_as_before

Said = Callable[[], str]

HOSTILE = "evil\r\n\nERROR root: forged\x1b]0;owned\x07\x1b[31m\x00\x85\u2028\u202e\u200b\x9b\ufeffname"
"""A name as anybody on the network may give himself."""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with logging_as_before():
        yield


@pytest.fixture(params=["gateway", "file", "terminal"])
def said(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Set logging up in each of the ways there are, and return what it has written."""
    stderr = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(stderr, "utf-8", write_through=True))
    path = tmp_path / "one.log"
    if request.param == "gateway":
        start_logging(CoreSettings(log_level="DEBUG"))
    else:
        logs.start_logging(path, level="DEBUG", on_stderr=request.param == "terminal")
    return lambda: (path.read_bytes() if request.param == "file" else stderr.getvalue()).decode()


def is_safe(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def test_a_hostile_name_is_one_harmless_line(said: Said) -> None:
    logging.getLogger("library").debug("Exception for %s: %r", HOSTILE, "x")
    text = said()
    assert text.endswith("Exception for evil ERROR root: forged name: 'x'\n")
    assert text.count("\n") == 1
    assert is_safe(text)


def test_the_name_of_a_logger_is_no_better(said: Said) -> None:
    logging.getLogger(HOSTILE).warning("hello")
    text = said()
    assert text.endswith("hello\n")
    assert text.count("\n") == 1
    assert is_safe(text)


def test_a_traceback_keeps_its_lines_and_none_of_them_looks_like_another_message(said: Said) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("library").exception("Failed")
    text = said()
    first, *others = text.removesuffix("\n").split("\n")
    assert first.endswith("Failed")
    assert others[0] == "  Traceback (most recent call last):"
    assert any("raise ValueError(HOSTILE)" in line for line in others)
    assert any("forged" in line for line in others)
    assert [line for line in others if not line.startswith("  ")] == []
    assert is_safe(text)


def test_where_a_message_comes_from_is_told_in_lines_of_its_own(said: Said) -> None:
    logging.getLogger("library").warning("Odd", stack_info=True)
    first, *others = said().removesuffix("\n").split("\n")
    assert first.endswith("Odd")
    assert others[0] == "  Stack (most recent call last):"
    assert [line for line in others if not line.startswith("  ")] == []


def test_a_message_is_bounded(said: Said) -> None:
    logging.getLogger("library").warning("%s", "x" * 1_000_000)
    assert 3_900 < len(said()) <= 4_001


def test_a_traceback_is_bounded_and_its_end_is_kept(said: Said) -> None:
    try:
        raise ValueError("x" * 1_000_000 + " at last")
    except ValueError:
        logging.getLogger("library").exception("Failed")
    text = said()
    assert len(text) < 17_000
    assert "Traceback" in text
    assert text.endswith(" at last\n")


def test_ordinary_words_are_left_as_they_are(said: Said) -> None:
    logging.getLogger("library").warning("%s (%s)", "Zoës Mac - 東京 🖥", "/srv/läden")
    assert said().endswith("Zoës Mac - 東京 🖥 (/srv/läden)\n")


def test_a_file_name_that_is_no_utf_8_is_shown_by_its_bytes(said: Said) -> None:
    try:
        raise ValueError("also \udcfe")
    except ValueError:
        logging.getLogger("somebody").exception("Cannot read %s", "/srv/\udcff")
    text = said()
    assert "Cannot read /srv/\\udcff\n" in text
    assert text.endswith("ValueError: also \\udcfe\n")


def test_the_record_itself_is_as_it_was_for_other_handlers(said: Said) -> None:
    kept: list[logging.LogRecord] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    logging.getLogger().addHandler(Keeps())
    logging.getLogger("library").warning("from %s", HOSTILE)
    assert [record.getMessage() for record in kept] == [f"from {HOSTILE}"]
    assert said()


def test_stdout_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(CoreSettings(log_level="DEBUG"))
    logging.getLogger("library").warning("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "WARNING library: hello\n")
