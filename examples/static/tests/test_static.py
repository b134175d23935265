"""The transport `static`: the tests that every transport has to pass, and those of its file."""

# ruff: noqa: ASYNC240 - a test that writes its file keeps nobody waiting

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from opencode_mcp import Transport, TransportError
from opencode_mcp.testing import Publisher, TransportSuite, TransportUnderTest

ONE = '[[instance]]\nname = "one"\nurl = "http://127.0.0.1:4096"\n'
TWO = '[[instance]]\nname = "two"\nurl = "http://127.0.0.1:4097"\n'


class FilePublisher(Publisher):
    """Publishes an endpoint by writing it into the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tables: dict[str, str] = {}
        self._write("")

    async def publish(self, url: str, *, key: str = "one", name: str = "one") -> None:
        fields = {"id": key, "name": name, "url": url}
        lines = [f"{field} = {_toml(value)}" for field, value in fields.items()]
        self._tables[key] = "\n".join(["[[instance]]", *lines, ""])
        self._write("\n".join(self._tables.values()))

    async def withdraw(self, key: str = "one") -> None:
        del self._tables[key]
        self._write("\n".join(self._tables.values()))

    @asynccontextmanager
    async def broken(self) -> AsyncGenerator[None]:
        self._write("this is not TOML")
        yield
        self._write("\n".join(self._tables.values()))

    def _write(self, content: str) -> None:
        """Put new content in place in one step, so that nobody reads half of it."""
        new = self._path.with_suffix(".new")
        new.write_text(content, "utf-8")
        new.replace(self._path)


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class TestStandard(TransportSuite):
    @pytest.fixture
    def transport(self, tmp_path: Path) -> TransportUnderTest:
        return TransportUnderTest("static", {"STATIC_FILE": str(tmp_path / "instances.toml")})

    @pytest.fixture
    def publisher(self, tmp_path: Path) -> Publisher:
        return FilePublisher(tmp_path / "instances.toml")


# What is particular to this transport.


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "instances.toml"


def listed_in(file: Path) -> TransportUnderTest:
    return TransportUnderTest("static", {"STATIC_FILE": str(file)})


async def names(transport: Transport) -> list[str]:
    return [endpoint.name for endpoint in await transport.discover()]


@pytest.mark.anyio
@pytest.mark.parametrize("environment", [{}, {"STATIC_FILE": "~/.config/opencode-mcp/instances.toml"}])
async def test_without_the_default_file_there_are_no_instances_but_an_invitation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    async with TransportUnderTest("static", environment).open() as transport:
        assert await names(transport) == []
        assert "~/.config/opencode-mcp/instances.toml" in transport.invitation
        file = tmp_path / ".config/opencode-mcp/instances.toml"
        file.parent.mkdir(parents=True)
        file.write_text(ONE)
        assert await names(transport) == ["one"]


@pytest.mark.anyio
async def test_any_other_file_must_exist(file: Path) -> None:
    async with listed_in(file).open() as transport:
        with pytest.raises(TransportError, match=r"instances\.toml cannot be used: .*No such file"):
            await transport.discover()


@pytest.mark.anyio
async def test_a_file_that_lists_nothing_is_an_empty_set(file: Path) -> None:
    file.write_text("# nothing yet\n")
    async with listed_in(file).open() as transport:
        assert await names(transport) == []


@pytest.mark.anyio
async def test_a_file_that_is_not_toml_is_an_error_that_names_the_line(file: Path) -> None:
    file.write_text(ONE + "url = \n")
    async with listed_in(file).open() as transport:
        with pytest.raises(TransportError, match=r"instances\.toml cannot be used: .*line 4"):
            await transport.discover()


@pytest.mark.anyio
@pytest.mark.parametrize("content", [b"\xff", b"a = " + b"[" * 100_000], ids=["no text", "nested too deep"])
async def test_a_file_that_cannot_be_read_is_an_error(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    async with listed_in(file).open() as transport:
        with pytest.raises(TransportError, match=r"instances\.toml cannot be used: "):
            await transport.discover()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "content",
    [
        '[[instances]]\nname = "one"',
        '[instance]\nname = "one"',
        'instance = ["one"]',
        "instance = 1",
        ONE + "[x]",
    ],
)
async def test_a_file_that_holds_anything_else_is_an_error(file: Path, content: str) -> None:
    file.write_text(content)
    async with listed_in(file).open() as transport:
        with pytest.raises(TransportError, match=r"instances\.toml must hold tables called \[\[instance\]\]"):
            await transport.discover()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('name = "x"', "url: Field required"),
        ('url = "http://host"', "name: Field required"),
        ('name = "x"\nurl = "ssh://host"', "url: must look like http://host:port"),
        ('name = "x"\nurl = "http://me:secret@host"', "url: must not hold credentials"),
        ('name = "x"\nurl = "http://host"\nport = 1', "port: Extra inputs are not permitted"),
        ('name = 1\nurl = "http://host"', "name: Input should be a valid string"),
        ('name = "\\u001b[2J"\nurl = "http://host"', "name: must not hold control"),
    ],
)
async def test_an_instance_that_cannot_be_used_is_left_out_with_the_reason(
    file: Path, table: str, reason: str
) -> None:
    file.write_text(f"{ONE}[[instance]]\n{table}\n{TWO}")
    async with listed_in(file).open() as transport:
        assert await names(transport) == ["one", "two"]
        (rejection,) = transport.rejected()
        assert rejection.source == f"{file}, instance 2"
        assert reason in rejection.reason
        assert "secret" not in rejection.reason
        file.write_text(ONE)
        assert await names(transport) == ["one"]
        assert list(transport.rejected()) == []


@pytest.mark.anyio
async def test_of_two_with_one_name_the_first_counts_and_an_id_tells_them_apart(file: Path) -> None:
    file.write_text(ONE + TWO.replace("two", "one"))
    async with listed_in(file).open() as transport:
        (endpoint,) = await transport.discover()
        assert endpoint.url == "http://127.0.0.1:4096"
        (rejection,) = transport.rejected()
        assert (rejection.source, "'one' is listed above" in rejection.reason) == (
            f"{file}, instance 2",
            True,
        )
        file.write_text(ONE + TWO.replace("two", "one") + 'id = "other"\n')
        assert [endpoint.id for endpoint in await transport.discover()] == ["one", "other"]


@pytest.mark.anyio
async def test_an_instance_keeps_its_id_when_its_address_changes(file: Path) -> None:
    file.write_text(ONE)
    async with listed_in(file).open() as transport:
        (before,) = await transport.discover()
        file.write_text(ONE.replace("4096", "5000"))
        (after,) = await transport.discover()
    assert (before.id, before.url) == ("one", "http://127.0.0.1:4096")
    assert (after.id, after.url) == ("one", "http://127.0.0.1:5000")


@pytest.mark.anyio
async def test_it_says_all_that_the_file_says(file: Path) -> None:
    file.write_text(ONE + 'hostname = "tower"\ndirectory = "/srv/web"\nlabels = { room = "attic" }\n')
    async with listed_in(file).open() as transport:
        (endpoint,) = await transport.discover()
    assert (endpoint.hostname, endpoint.directory) == ("tower", "/srv/web")
    assert endpoint.labels == {"room": "attic"}


@pytest.mark.anyio
async def test_the_user_vouches_for_what_he_lists_unless_he_says_otherwise(file: Path) -> None:
    file.write_text(f"{ONE}{TWO}vouched = false\n")
    async with listed_in(file).open() as transport:
        assert [endpoint.vouched for endpoint in await transport.discover()] == [True, False]


@pytest.mark.anyio
@pytest.mark.skipif(os.name != "posix", reason="files have owners and modes on POSIX only")
async def test_a_file_that_everybody_can_write_is_refused_with_the_mend(file: Path) -> None:
    file.write_text(ONE)
    file.chmod(0o646)
    async with listed_in(file).open() as transport:
        with pytest.raises(TransportError, match="chmod o-w"):
            await transport.discover()
        file.chmod(0o664)
        assert await names(transport) == ["one"]


@pytest.mark.anyio
@pytest.mark.skipif(os.name != "posix", reason="files have owners and modes on POSIX only")
async def test_a_file_of_another_user_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(ONE)
    async with listed_in(file).open() as transport:
        owner = os.geteuid()
        if owner == 0:  # whose files everybody may trust: give it away
            os.chown(file, 12345, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
        with pytest.raises(TransportError, match="others can write it; run chown"):
            await transport.discover()
