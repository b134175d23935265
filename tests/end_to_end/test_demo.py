"""The demo, as a newcomer runs it: it shows the whole path, says what it used, and leaves nothing behind."""

import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import anyio.to_thread
import httpx2
import psutil
import pytest

from support.model_server import Answer, ModelServer
from support.real_opencode import opencode_binary, project_config, running_opencode

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

DEMO = Path(__file__).parents[2] / "demo" / "demo.py"


class Demo:
    """Runs the demo in a home and a temporary directory of its own.

    Attributes:
        home: The home.
        temporary: The temporary directory.
        mark: Stands in the environment of every process that the demo starts.
        pieces: What it said on stdout, as it came.
    """

    def __init__(self, folder: Path) -> None:
        self.home, self.temporary = folder / "home", folder / "tmp"
        self.home.mkdir()
        self.temporary.mkdir()
        self.mark = uuid.uuid4().hex
        self.pieces: list[bytes] = []

    async def run(self, *, opencode: Path | None = None) -> tuple[int, str, str]:
        """Return the exit code and what was said on stdout and stderr."""
        path = os.pathsep.join(
            folder for folder in os.get_exec_path() if shutil.which("opencode", path=folder) is None
        )
        environment = {
            "PATH": path if opencode is None else f"{opencode.parent}{os.pathsep}{path}",
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "DEMO_TEST": self.mark,
        }
        errors = b""
        with anyio.fail_after(120):
            async with await anyio.open_process(
                [sys.executable, str(DEMO)], env=environment, cwd=self.home
            ) as process:
                assert process.stdout
                assert process.stderr
                async for piece in process.stdout:
                    self.pieces.append(piece)
                async for piece in process.stderr:
                    errors += piece
                code = await process.wait()
        return code, b"".join(self.pieces).decode(), errors.decode()

    def children(self) -> list[str]:
        """The processes that the demo started and that still run."""
        found: list[str] = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DEMO_TEST") == self.mark:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path)


@pytest.fixture
async def model() -> AsyncGenerator[ModelServer]:
    server = ModelServer()
    async with server.serve():
        yield server


def assert_complete(said: str, answer: str) -> None:
    """Fail unless the three tools were called in turn and each showed what it should."""
    listing, sending, reading = said.index(">> instances("), said.index(">> send("), said.index(">> read(")
    assert listing < sending < reading
    # A machine that is busy may not have told yet what it does.
    assert re.search(r"hello-world \| (idle|online) \| ", said[listing:sending])
    streamed, transcript = (" ".join(part.split()) for part in (said[sending:reading], said[reading:]))
    assert answer in streamed
    assert answer in transcript
    assert said.rstrip().endswith("nothing is left behind.")


async def test_without_opencode_it_uses_the_fake_and_says_so(demo: Demo) -> None:
    code, said, errors = await demo.run()
    assert (code, errors) == (0, "")
    assert "FakeOpenCode" in said
    assert "since there is no `opencode` on PATH" in said
    assert_complete(said, "I am the FakeOpenCode of this demo: I speak OpenCode's HTTP API")
    assert sum(b"\n" not in piece for piece in demo.pieces) > 5, "the answer did not stream"
    assert list(demo.temporary.iterdir()) == []
    assert await anyio.to_thread.run_sync(demo.children) == []


@pytest.mark.real
async def test_with_opencode_and_a_model_it_uses_them_and_says_so(demo: Demo, model: ModelServer) -> None:
    binary = await anyio.to_thread.run_sync(opencode_binary)
    config = anyio.Path(demo.home) / ".config" / "opencode"
    await config.mkdir(parents=True)
    await (config / "opencode.json").write_text(json.dumps(project_config(model.url)))
    model.script(Answer(chunks=["I am a real agent ", "with a scripted mind."]))
    code, said, errors = await demo.run(opencode=binary)
    assert (code, errors) == (0, "")
    assert f"The real OpenCode ({binary}) runs at " in said
    assert "FakeOpenCode" not in said
    assert_complete(said, "I am a real agent with a scripted mind.")
    assert len(model.requests) == 1
    assert list(demo.temporary.iterdir()) == []
    assert await anyio.to_thread.run_sync(demo.children) == []
    async with (
        running_opencode(demo.temporary, model.url, home=demo.home) as server,
        httpx2.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        assert (await client.get("/experimental/session")).json() == []


@pytest.mark.real
async def test_with_opencode_but_no_model_it_falls_back_and_says_why(demo: Demo) -> None:
    binary = await anyio.to_thread.run_sync(opencode_binary)
    code, said, errors = await demo.run(opencode=binary)
    assert (code, errors) == (0, "")
    assert "since the `opencode` on PATH has no model configured" in said
    assert_complete(said, "I am the FakeOpenCode of this demo")
    assert list(demo.temporary.iterdir()) == []
    assert await anyio.to_thread.run_sync(demo.children) == []
