"""The tool `instances`: who is there and how they stand, at once and without asking anyone."""

from datetime import UTC, datetime
from typing import Any

import anyio
import jsonschema
import pytest

from opencode_mcp import Rejection
from opencode_mcp.testing import Ask, Fault, Gate, Reply
from support.generations import MakeFake
from support.mcp_client import connected, in_both_eras, output_schema

pytestmark = pytest.mark.anyio


async def test_an_instance_is_shown_with_machine_project_version_and_state(
    mode: str, make_fake: MakeFake
) -> None:
    fake = make_fake(directory="/srv/shop", version="1.18.33")
    session = fake.create_session("Fix the login")
    async with connected(fake, mode=mode) as connection:
        row = await connection.until("alpha", session="Fix the login")
        seen = datetime.fromisoformat(row.pop("last_seen"))
        assert abs((datetime.now(UTC) - seen).total_seconds()) < 60
        assert row == {
            "name": "alpha",
            "status": "online",
            "activity": "idle",
            "host": "laptop",
            "identity": "",
            "directory": "/srv/shop",
            "version": "1.18.33",
            "session": "Fix the login",
            "waiting_for": "",
            "transport": "listed",
            "detail": "",
        }
        answer = await connection.call("instances")
        assert answer.text == 'alpha | idle | laptop:/srv/shop | "Fix the login" | v1.18.33'
        fake.set_busy(session)
        await connection.until("alpha", activity="busy")
        assert "alpha | busy | " in (await connection.call("instances")).text


async def test_whatever_the_state_the_structured_content_fits_the_schema(
    mode: str, make_fake: MakeFake
) -> None:
    fakes = {
        "idle": make_fake(),
        "busy": make_fake(),
        "locked": make_fake(password="right"),
        "gone": make_fake(),
        "broken": make_fake(),
    }
    fakes["broken"].fault = Fault.HTML
    fakes["busy"].set_busy(fakes["busy"].create_session("At work"))
    async with connected(*fakes.values(), mode=mode, names=tuple(fakes), online=False) as connection:
        await connection.until("gone")
        await fakes["gone"].kill()
        states = {"idle": "online", "busy": "online", "locked": "needs credentials"}
        for name, status in {**states, "gone": "offline", "broken": "offline"}.items():
            await connection.until(name, status)
        await connection.until("busy", activity="busy")
        answer = await connection.call("instances")
        jsonschema.validate(answer.data, await output_schema(connection.client, "instances"))
        assert [line.split(" | ")[:2] for line in answer.text.splitlines()] == [
            ["broken", "offline"],
            ["busy", "busy"],
            ["gone", "offline"],
            ["idle", "idle"],
            ["locked", "needs credentials"],
        ]


async def test_it_costs_no_request(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    async with connected(fake, mode=mode) as connection:
        before = len(fake.requests)
        for _ in range(20):
            await connection.call("instances")
        assert len(fake.requests) == before


async def test_the_very_first_call_waits_for_the_first_look(mode: str, make_fake: MakeFake) -> None:
    async with connected(make_fake(), make_fake(), mode=mode, online=False) as connection:
        rows = (await connection.call("instances")).data["instances"]
        assert [(row["name"], row["status"]) for row in rows] == [("alpha", "online"), ("beta", "online")]


async def test_the_first_call_waits_no_longer_for_one_that_hangs(
    mode: str, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opencode_mcp.mcp.tools.FIRST_LOOK_SECONDS", 0.05)
    fake = make_fake()
    fake.fault = Fault.HANG
    async with connected(fake, mode=mode, online=False) as connection:
        [row] = (await connection.call("instances")).data["instances"]
        assert (row["status"], row["activity"], row["last_seen"]) == ("connecting", None, None)


async def test_one_that_is_gone_is_still_listed_with_when_it_was_last_seen(
    mode: str, make_fake: MakeFake
) -> None:
    fake = make_fake(directory="/srv/shop")
    fake.create_session("Till")
    async with connected(fake, make_fake(), mode=mode) as connection:
        await connection.until("alpha", session="Till")
        await fake.kill()
        row = await connection.until("alpha", "offline")
        assert row["activity"] is None
        assert row["last_seen"]
        assert row["detail"] == "Nothing accepts connections at its address."
        line, other = (await connection.call("instances")).text.splitlines()
        assert line == (
            f'alpha | offline | laptop:/srv/shop | "Till" | v{make_fake.version} '
            f"| last seen {row['last_seen']} | {row['detail']}"
        )
        assert other.startswith("beta | idle")


@in_both_eras
async def test_one_that_never_answered_was_never_seen(mode: str) -> None:
    async with connected(mode=mode) as connection:
        connection.transport.add("http://127.0.0.1:1", "ghost")
        row = await connection.until("ghost", "offline")
        assert row["last_seen"] is None
        assert "ghost | offline | last seen never | " in (await connection.call("instances")).text


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_one_that_wants_a_password_says_which_variable(
    mode: str, make_fake: MakeFake, password: str | None
) -> None:
    fake = make_fake(password="right")
    async with connected(fake, mode=mode, online=False, server_password=password) as connection:
        row = await connection.until("alpha", "needs credentials")
        assert "OPENCODE_SERVER_PASSWORD" in row["detail"]
        assert ("OPENCODE_SERVER_USERNAME" in row["detail"]) == bool(password)
        answer = await connection.call("instances")
        assert "alpha | needs credentials | " in answer.text
        assert row["detail"] in answer.text
        for tool in ("send", "read"):
            arguments: dict[str, Any] = {"message": "hi"} if tool == "send" else {}
            refused = await connection.call(tool, instance="alpha", **arguments)
            assert refused.is_error
            assert refused.text.startswith("alpha needs credentials, last seen ")
            assert "OPENCODE_SERVER_PASSWORD" in refused.text


async def test_with_the_password_it_is_online(mode: str, make_fake: MakeFake) -> None:
    async with connected(make_fake(password="right"), mode=mode, server_password="right") as connection:
        assert (await connection.call("send", instance="alpha", message="hi")).text == "You said: hi"


@in_both_eras
async def test_an_empty_list_tells_how_to_connect_one(mode: str) -> None:
    async with connected(mode=mode) as connection:
        answer = await connection.call("instances")
        assert answer.data == {"instances": [], "notes": ["Start OpenCode and it shows here."]}
        assert answer.text == ("No OpenCode instance is connected.\nnote: Start OpenCode and it shows here.")
        refused = await connection.call("send", instance="alpha", message="hi")
        assert refused.is_error
        assert refused.text == "No instance is connected. Start OpenCode and it shows here."


async def test_what_was_found_and_left_out_is_told(mode: str, make_fake: MakeFake) -> None:
    async with connected(make_fake(), mode=mode) as connection:
        connection.transport.left_out = [Rejection(source="bad.json", reason="it is not JSON")]
        answer = await connection.call("instances")
        assert answer.data["notes"] == ["bad.json: it is not JSON"]
        assert answer.text.endswith("\nnote: bad.json: it is not JSON")
        connection.transport.left_out *= 30
        answer = await connection.call("instances")
        assert len(answer.data["notes"]) == 21
        assert answer.data["notes"][-1].startswith("10 more were left out")


async def test_an_agent_that_waits_for_a_person_is_shown(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    fake.script(Reply(tools=[Ask()]))
    async with (
        connected(fake, mode=mode) as connection,
        connection.meanwhile("send", instance="alpha", message="Paint it") as sending,
    ):
        row = await connection.until("alpha", waiting_for="question: Which colour?")
        assert row["activity"] == "busy"
        assert "waits for a person (question: Which colour?)" in (await connection.call("instances")).text
        sending.cancel()


async def test_the_session_shown_is_the_one_at_work(mode: str, make_fake: MakeFake) -> None:
    fake = make_fake()
    gate = Gate()
    at_work, last = fake.create_session("At work"), fake.create_session("Used last")
    fake.script(Reply(text="a b c", gate=gate))
    async with connected(fake, mode=mode) as connection:
        fake.prompt(at_work, "Go")
        fake.prompt(last, "Quick one")
        await connection.until("alpha", session="At work")
        gate.open()
        await connection.until("alpha", activity="idle")


async def test_those_that_leave_the_transport_leave_the_list(mode: str, make_fake: MakeFake) -> None:
    async with connected(make_fake(), make_fake(), mode=mode) as connection:
        del connection.transport.endpoints[0]
        while "alpha" in (await connection.call("instances")).text:
            await anyio.sleep(0.01)
        assert "beta | idle" in (await connection.call("instances")).text
