"""The same test on every OpenCode: fakes of 1.x, of 2.x and of its preview, and what differs in words."""

import dataclasses
from typing import Any, Literal

import httpx2
import pytest

from opencode_mcp import hookimpl, opencode_auth
from opencode_mcp.testing import FakeOpenCode

PASSWORD = "s3cret"
"""Of all fakes of 2.x, which always want one."""


@dataclasses.dataclass(frozen=True)
class MakeFake:
    """Makes fakes of one sort.

    Attributes:
        generation: 1 or 2.
        preview: Whether it speaks 2.x as its preview did.
    """

    generation: Literal[1, 2]
    preview: bool = False

    @property
    def name(self) -> str:
        """For the id of a test."""
        return f"{self.generation}{'-preview' if self.preview else ''}"

    @property
    def password(self) -> str | None:
        """What its fakes want, unless told otherwise."""
        return None if self.generation == 1 else PASSWORD

    @property
    def version(self) -> str:
        """What its fakes say their version is."""
        return FakeOpenCode(generation=self.generation, preview=self.preview).version

    def __call__(self, *arguments: Any, of: type[FakeOpenCode] = FakeOpenCode, **options: Any) -> Any:
        """Make one; `of` is its class."""
        given: dict[str, Any] = {"password": self.password, **options}
        return of(*arguments, generation=self.generation, preview=self.preview, **given)

    def either(self, first: Any, second: Any) -> Any:
        """Return what 1.x says, or what 2.x does."""
        return first if self.generation == 1 else second


CLASSIC, CURRENT, PREVIEW = MakeFake(1), MakeFake(2), MakeFake(2, preview=True)


def generate(metafunc: pytest.Metafunc) -> None:
    """Run a test that wants `make_fake` on every generation; those of 2.x are slow, and in one era of MCP."""
    if "make_fake" not in metafunc.fixturenames:
        return
    later = [pytest.param(one, id=one.name, marks=pytest.mark.slow) for one in (CURRENT, PREVIEW)]
    if "mode" not in metafunc.fixturenames:
        metafunc.parametrize("make_fake", [pytest.param(CLASSIC, id=CLASSIC.name), *later])
        return
    metafunc.parametrize(
        ("mode", "make_fake"),
        [
            pytest.param("auto", CLASSIC, id="1-modern"),
            pytest.param("legacy", CLASSIC, id="1-legacy"),
            *(pytest.param("auto", one.values[0], id=one.id, marks=one.marks) for one in later),
        ],
    )


class Keyring:
    """A plugin that knows the password, wherever it is asked for."""

    @hookimpl
    def opencode_mcp_instance_auth(self) -> httpx2.Auth:
        return opencode_auth(PASSWORD)


def person(fake: FakeOpenCode) -> httpx2.AsyncClient:
    """A client of somebody at the machine."""
    auth = (fake.username, fake.password) if fake.password else None
    return httpx2.AsyncClient(base_url=fake.url, auth=auth, trust_env=False)


async def answer_permission(fake: FakeOpenCode, decision: str = "once", message: str | None = None) -> None:
    """Decide on the one permission that is asked for."""
    [asked] = fake.permissions
    path = "" if fake.generation == 1 else f"/api/session/{asked['sessionID']}"
    said = {} if message is None else {"message": message}
    body = {"reply": decision, "decision": decision, **said}
    async with person(fake) as client:
        answered = await client.post(f"{path}/permission/{asked['id']}/reply", json=body)
        answered.raise_for_status()


def say_busy(fake: FakeOpenCode, session_id: str) -> None:
    """Say on the stream that a session is at work, whatever it does."""
    if fake.generation == 1:
        fake.emit("session.status", {"sessionID": session_id, "status": {"type": "busy"}})
    else:
        fake.emit("session.execution.started", {"sessionID": session_id})


def say_error(fake: FakeOpenCode, session_id: str, message: str) -> None:
    """Say on the stream that something went wrong in a session."""
    if fake.generation == 1:
        error = {"name": "UnknownError", "data": {"message": message}}
        fake.emit("session.error", {"sessionID": session_id, "error": error})
    else:
        error = {"type": "unknown", "message": message}
        fake.emit("session.execution.failed", {"sessionID": session_id, "error": error})


def say_tool(fake: FakeOpenCode, session_id: str, command: str) -> None:
    """Say on the stream that the agent of a session runs a command."""
    if fake.generation == 1:
        state = {"status": "running", "input": {"command": command}}
        part = {"id": "prt_1", "messageID": "msg_1", "sessionID": session_id, "type": "tool", "tool": "bash"}
        fake.emit("message.part.updated", {"sessionID": session_id, "part": {**part, "state": state}})
    else:
        call = {"sessionID": session_id, "assistantMessageID": "msg_1", "id": "call_1", "callID": "call_1"}
        fake.emit("session.tool.input.started", {**call, "name": "bash"})
        fake.emit("session.tool.called", {**call, "input": {"command": command}})


def say_delta(fake: FakeOpenCode, session_id: str, text: str) -> None:
    """Say on the stream one more piece of what the agent writes at the moment."""
    part = fake.messages[session_id][-1]["parts"][-1]
    where = {"sessionID": session_id, "messageID": part["messageID"], "partID": part["id"]}
    if fake.generation == 1:
        fake.emit("message.part.delta", {**where, "field": "text", "delta": text})
    else:
        where = {"sessionID": session_id, "assistantMessageID": part["messageID"], "ordinal": 0}
        fake.emit("session.text.delta", {**where, "delta": text})
