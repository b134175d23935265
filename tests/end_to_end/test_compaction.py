"""A real OpenCode that compacts a long conversation in the middle of a turn."""

from pathlib import Path
from typing import Any

import pytest

from opencode_mcp.conversation import Conversation
from opencode_mcp.fleet.pace import Pace
from support import real_opencode
from support.fleets import Listed, endpoint, only, running_fleet, until
from support.model_server import Answer, ModelServer

pytestmark = [pytest.mark.anyio, pytest.mark.real]


async def test_the_answer_is_what_the_agent_says_after_compacting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usual = real_opencode.project_config

    def with_a_small_context(model_url: str) -> dict[str, Any]:
        config = usual(model_url)
        config["provider"]["fake"]["models"]["fake"]["limit"] = {"context": 20_000, "output": 1_000}
        return {**config, "permission": {"bash": "allow"}, "compaction": {"auto": True}}

    monkeypatch.setattr(real_opencode, "project_config", with_a_small_context)
    model, listed = ModelServer(), Listed()
    model.script(
        Answer(
            chunks=["Step one."], calls=[("bash", {"command": "echo hi", "description": "Hi"})], tokens=30_000
        ),
        Answer(chunks=["The final answer."]),
    )
    async with (
        model.serve(),
        real_opencode.running_opencode(tmp_path, model.url) as server,
        running_fleet(listed, pace=Pace()) as fleet,
    ):
        listed.publish(endpoint(server.url))
        await until(lambda: fleet.monitors and only(fleet).stocked, seconds=30)
        reply = await Conversation(fleet).send("laptop", "Do the work", seconds=60)
        stored = await only(fleet).api.messages(reply.session_id, 20)
        assert any(message.summary for message in stored)  # it did compact
        assert (reply.state, reply.text) == ("done", "The final answer.")
