"""The index of another machine: which paths of it lead to instances, and nothing else."""

import json

import pytest

from opencode_mcp import ProtocolError
from opencode_mcp_tailscale.index import MOST_BYTES, Entry, read_entry, read_index, write_index
from tailscale.tailscale_parts import entry, index


def ids(body: bytes) -> list[str]:
    return [one.id for one in read_index(body)]


def test_an_index_is_read_as_it_is_written() -> None:
    entries = [
        Entry(id="k3", path="/i/k3/", name="laptop-shop", version="1.18.33", guarded=True),
        Entry(id="k4", path="/i/k4/", guarded=False),
        Entry(id="k5", path="/i/k5/"),
    ]
    assert read_index(write_index(entries).encode()) == entries


def test_an_index_never_says_where_something_is_or_whose() -> None:
    written = json.loads(write_index([Entry(id="k", path="/i/k/", url="http://127.0.0.1:1", mine=True)]))
    assert written == {"v": 1, "instances": [{"id": "k", "path": "/i/k/"}]}
    [read] = read_index(index(entry("k", url="http://10.0.0.1/", mine=True)))
    assert (read.url, read.mine) == ("", False)


@pytest.mark.parametrize(
    "path",
    [
        "http://evil.example/",
        "//evil.example/",
        "///",
        "/",
        "",
        "i/k/",
        "/i/k",
        "/i//k/",
        "/i/../admin/",
        "/../",
        "/./",
        "/.well-known/",
        "/i/k/..",
        "/i/%2e%2e/",
        "/i/%2f/",
        "/i/a%00/",
        "/i\\k/",
        "\\\\evil\\",
        "/@evil.example/",
        "/i:80/",
        "/i/k/?x=/",
        "/i/k/#/",
        "/i k/",
        "/i/k/\n",
        "/i/\x00/",
        "/i/\x1b[31m/",
        "/ä/",
        "/\u2028/",
        "/\ud800/",
        "/" + "a/" * 9,
        "/" + "a" * 200 + "/",
        None,
        7,
        ["/i/k/"],
        {"a": "/i/k/"},
    ],
)
def test_any_other_path_is_left_out(path: object) -> None:
    assert ids(index({"id": "bad", "path": path}, entry("good"))) == ["good"]


@pytest.mark.parametrize("path", ["/i/k3/", "/a/", "/" + "a/" * 8, "/a.b-c_d~/", "/-/", "/a../"])
def test_a_path_of_that_machine_is_taken(path: str) -> None:
    assert [one.path for one in read_index(index({"id": "k", "path": path}))] == [path]


@pytest.mark.parametrize("known", ["", "a/b", "a:1", "a b", "ä", "k\n", "x" * 65, None, 7, ["k"], "\x1b"])
def test_an_instance_without_a_usable_id_is_left_out(known: object) -> None:
    assert ids(index({"id": known, "path": "/i/k/"}, entry("good"))) == ["good"]


def test_of_two_with_one_id_the_first_counts() -> None:
    [only] = read_index(index(entry("k", name="first"), entry("k", name="second")))
    assert only.name == "first"


def test_of_1000_instances_the_first_64_count() -> None:
    assert ids(index(*(entry(f"k{number}") for number in range(1000)))) == [f"k{n}" for n in range(64)]


def test_what_is_no_instance_is_left_out() -> None:
    assert ids(index(None, 7, "k", [], {}, entry("good"))) == ["good"]  # pyright: ignore[reportArgumentType] - that is the point


def test_words_are_one_clean_line_of_bounded_length() -> None:
    [found] = read_index(index(entry("k", name=" a\x1b[31m\r\n\u202eb" + "x" * 999, version="v\n" * 99)))
    assert found.name.startswith("a bx")
    assert (len(found.name), len(found.version)) == (200, 40)


@pytest.mark.parametrize("odd", [None, 7, ["a"], {}, True])
def test_words_of_another_kind_are_as_if_they_were_not_there(odd: object) -> None:
    assert read_index(index(entry("k", name=odd, version=odd, auth=odd))) == [Entry(id="k", path="/i/k/")]


@pytest.mark.parametrize(
    ("auth", "guarded"), [("basic", True), ("none", False), ("bearer", None), ("", None)]
)
def test_whether_it_wants_a_password_is_taken_if_it_is_said(auth: str, guarded: bool | None) -> None:
    assert [one.guarded for one in read_index(index(entry("k", auth=auth)))] == [guarded]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"v": 1}',
        b'{"v": "1", "instances": []}',
        b'{"v": null, "instances": []}',
        b'{"v": 1, "instances": {}}',
        b"<html>",
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b'{"v": ' + b"9" * 50_000 + b', "instances": []}',
    ],
)
def test_what_is_no_index_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="What it tells at the index port is no index"):
        read_index(body)


@pytest.mark.parametrize("version", [0, 2, -1, 10**30])
def test_an_index_of_another_version_is_refused_with_what_to_do(version: int) -> None:
    with pytest.raises(
        ProtocolError, match=r"an index of version .{1,20}: update opencode-mcp, there or here"
    ):
        read_index(index(entry("k"), version=version))


def test_an_index_without_instances_is_one() -> None:
    assert read_index(index()) == []


def test_what_is_written_is_never_longer_than_what_others_read() -> None:
    many = [Entry(id=f"k{n}", path=f"/i/k{n}/", name="\U0001f600" * 200) for n in range(100)]
    written = write_index(many).encode()
    assert len(written) <= MOST_BYTES
    read = read_index(written)
    assert 20 < len(read) <= 64
    assert [one.id for one in read] == [f"k{n}" for n in range(len(read))]


def test_an_entry_alone_is_read_by_the_same_rules() -> None:
    assert read_entry({"id": "k", "path": "/i/k/"}) == Entry(id="k", path="/i/k/")
    assert read_entry({"id": "k", "path": "//x/"}) is None
    assert read_entry(None) is None
