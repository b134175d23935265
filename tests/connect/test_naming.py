"""What an instance is called, and the files that are named after it."""

from itertools import islice
from pathlib import Path

import pytest

from opencode_mcp import Endpoint
from opencode_mcp.connect.naming import instance_name, numbered
from opencode_mcp.errors import StartError
from opencode_mcp.state.places import file_stem, state_directory
from opencode_mcp.text import printable


@pytest.fixture(autouse=True)
def on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "laptop.example.org")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/home/me/shop", "laptop-shop"),
        ("/", "laptop-root"),
        ("/home/me/my shop", "laptop-my shop"),
        ("/home/me/日本語 ü", "laptop-日本語 ü"),
        ("/x'; touch PWNED; '", "laptop-x'; touch PWNED; '"),
        ("/a\nb\tc\x1b[31md", "laptop-a b cd"),
        ("/a\u202eb", "laptop-a b"),
        ("/\udcff\udcfe", "laptop-"),
        ("/   ", "laptop-"),
        ("/-rf", "laptop--rf"),
    ],
)
def test_an_instance_is_called_after_host_and_folder_in_one_safe_line(folder: str, name: str) -> None:
    assert instance_name("", Path(folder)) == name
    Endpoint(id="x", name=f"{name}-2", url="http://127.0.0.1:1")


def test_a_name_leaves_room_for_a_number() -> None:
    name = instance_name("", Path("/" + "x" * 255))
    assert len(name) == 190
    Endpoint(id="x", name=f"{name}-123456789", url="http://127.0.0.1:1")


def test_a_chosen_name_is_taken_as_it_is() -> None:
    assert instance_name("my  name", Path("/shop")) == "my  name"


def test_a_machine_without_a_name_is_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "")
    assert instance_name("", Path("/shop")) == "localhost-shop"


def test_numbers_begin_with_two() -> None:
    assert list(islice(numbered("a"), 3)) == ["a", "a-2", "a-3"]


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/home/me", "/home/me"), ("/a\nb", ""), ("/\udcff", ""), ("/" + "x" * 4096, ""), ("/ü ", "/ü ")],
)
def test_a_directory_that_an_endpoint_cannot_say_is_left_out(path: str, shown: str) -> None:
    assert printable(path) == shown
    Endpoint(id="x", name="x", url="http://127.0.0.1:1", directory=shown)


def test_file_names_are_plain_and_differ_where_names_do() -> None:
    names = [
        "a",
        "A",
        "a b",
        "a-b",
        "a  b",
        "a/b",
        "../a",
        ".",
        "..",
        "...",
        "-rf",
        "ü",
        "",
        "x" * 200,
        "x" * 201,
    ]
    names += ["a~12345678", "instance", "日", "本", "x'; touch PWNED; '"]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    for stem in stems:
        assert stem.isascii()
        assert 1 <= len(stem) <= 100
        assert "/" not in stem
        assert stem[0] not in ".-"
    assert file_stem("laptop-shop_1.2") == "laptop-shop_1.2"


def test_state_is_kept_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_directory() == tmp_path / "state" / "opencode-mcp"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unusable)
        directory = state_directory()
        assert directory == tmp_path / "home" / ".local" / "state" / "opencode-mcp"
        assert directory.stat().st_mode & 0o777 == 0o700


def test_a_state_directory_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        StartError, match=r"file/opencode-mcp cannot be used: Not a directory.*XDG_STATE_HOME"
    ):
        state_directory()
