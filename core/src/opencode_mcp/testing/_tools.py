"""What happens inside a tool step: a permission, a question, a sub-agent, or just an answer."""

import asyncio
import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from opencode_mcp.testing._ids import now_ms
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._voice import Kind
from opencode_mcp.testing.script import Ask, Question, Reply, SubAgent, ToolCall

Json = dict[str, Any]
StartChild = Callable[[str, str, Reply], Awaitable[None]]

_DISMISSED = "The user dismissed this question"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """How a generation words what its tools do.

    Attributes:
        rejected: The error of a call that was rejected.
        corrected: The error of one that was rejected with a `{feedback}`.
        aborted: The error of one that was cut off.
        question: The prefix of the ids of questions.
        sub_agent: The tool that starts a sub-agent.
        agent: The name of the argument that says which one.
        child_title: The title of its session, from `{description}` and `{agent}`.
        child_result: What the tool returns, from the session's `{id}` and the `{text}` it ended with.
    """

    rejected: str
    corrected: str
    aborted: str
    question: str
    sub_agent: str
    agent: str
    child_title: str
    child_result: str


CLASSIC = Wording(
    rejected="The user rejected permission to use this specific tool call.",
    corrected="The user rejected permission to use this specific tool call "
    "with the following feedback: {feedback}",
    aborted="Tool execution aborted",
    question="que",
    sub_agent="task",
    agent="subagent_type",
    child_title="{description} (@{agent} subagent)",
    child_result='<task id="{id}" state="completed">\n<task_result>\n{text}\n</task_result>\n</task>',
)


@dataclasses.dataclass(kw_only=True)
class Request:
    """A permission or a question that waits for the user.

    Attributes:
        kind: Which of them.
        body: The request, as 1.x lists it.
        directory: The project in which it was asked.
        answer: The body of the reply, once there is one; None for a dismissed question.
        answered: Set with it.
    """

    kind: Kind
    body: Json
    directory: str
    answer: Json | None = None
    answered: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Tools:
    """Runs tool steps and keeps what they ask.

    Attributes:
        permissions: Open permission requests by id.
        questions: Open questions by id.
    """

    def __init__(self, store: Store, wording: Wording = CLASSIC) -> None:
        self.permissions: dict[str, Request] = {}
        self.questions: dict[str, Request] = {}
        self._allowed: set[str] = set()
        self._store = store
        self._wording = wording
        self._calls = itertools.count(1)

    def clear(self, *, permissions_too: bool = True) -> None:
        """Forget what is open, and with `permissions_too` what is allowed, as a restart does."""
        self.permissions.clear()
        self.questions.clear()
        if permissions_too:
            self._allowed.clear()

    async def run(self, message: Json, call: ToolCall | Ask | SubAgent, start_child: StartChild) -> bool:
        """Run one step; False means the turn ends here."""
        if isinstance(call, Ask):
            return await self._ask(message, call)
        if isinstance(call, SubAgent):
            return await self._delegate(message, call, start_child)
        part = self._open(message, call.tool, call.input)
        if call.asks and not self._allowed.issuperset(call.always):
            answer = await self._permission(part, call)
            if answer["reply"] == "reject":
                return self._rejected(part, answer.get("message"))
        if call.fails is not None:
            self._fail(part, call.fails, "tool.execution")
            return True
        for output in ("", call.output):
            part["state"]["metadata"] = {"output": output}
            self._store.voice.part_changed(part)
        title = str(call.input.get("command", ""))
        self._complete(part, call.output, title, {"output": call.output, "exit": 0})
        return True

    def reply(self, request: Request, answer: Json | None) -> None:
        """Answer a permission request by `reply`, a question by `answers`; None dismisses a question."""
        open_ones = self.permissions if request.kind == "permission" else self.questions
        del open_ones[request.body["id"]]
        if answer is not None and answer.get("reply") == "always":
            self._allowed.update(request.body["always"])
        if request.body["sessionID"] in self._store.sessions:
            self._store.voice.answered(request.kind, request.body, answer)
        request.answer = answer
        request.answered.set()

    def interrupt(self, message: Json) -> None:
        """Close the tool that an abort cuts off."""
        for part in message["parts"]:
            if part["type"] == "tool" and part["state"]["status"] in ("pending", "running"):
                part["state"]["metadata"] = {"interrupted": True}
                self._fail(part, self._wording.aborted, "aborted")

    def _open(self, message: Json, tool: str, arguments: Mapping[str, Any]) -> Json:
        state: Json = {"status": "pending", "input": {}, "raw": ""}
        call_id = f"call_{next(self._calls)}"
        part = self._store.add_part(
            message, {"type": "tool", "tool": tool, "callID": call_id, "state": state}
        )
        part["state"] = {"status": "running", "input": dict(arguments), "time": {"start": now_ms()}}
        self._store.voice.part_changed(part)
        return part

    def _rejected(self, part: Json, feedback: str | None) -> bool:
        if feedback:
            self._fail(part, self._wording.corrected.format(feedback=feedback), "permission.rejected")
        else:
            self._fail(part, self._wording.rejected, "aborted")
        return bool(feedback)

    def _fail(self, part: Json, error: str, kind: str) -> None:
        self._store.errors[part["id"]] = kind
        part["state"] |= {"status": "error", "error": error}
        part["state"]["time"]["end"] = now_ms()
        self._store.voice.part_changed(part)

    def _complete(self, part: Json, output: str, title: str, metadata: Json) -> None:
        metadata["truncated"] = False
        part["state"] |= {"status": "completed", "output": output, "title": title, "metadata": metadata}
        part["state"]["time"]["end"] = now_ms()
        self._store.voice.part_changed(part)

    async def _permission(self, part: Json, call: ToolCall) -> Json:
        command = str(call.input.get("command", call.tool))
        body: Json = {
            "id": self._store.ids.new("per"),
            "sessionID": part["sessionID"],
            "permission": call.tool,
            "patterns": list(call.patterns or [command]),
            "metadata": {"command": command},
            "always": list(call.always),
            "tool": {"messageID": part["messageID"], "callID": part["callID"]},
        }
        return await self._wait("permission", body) or {"reply": "reject"}

    async def _ask(self, message: Json, call: Ask) -> bool:
        questions = [_question(question) for question in call.questions]
        part = self._open(message, "question", {"questions": questions})
        body: Json = {
            "id": self._store.ids.new(self._wording.question),
            "sessionID": part["sessionID"],
            "questions": questions,
            "tool": {"messageID": part["messageID"], "callID": part["callID"]},
        }
        answer = await self._wait("question", body)
        if answer is None:
            self._fail(part, _DISMISSED, "aborted")
            return False
        if (feedback := answer.get("dismissed")) is not None:
            self._fail(part, feedback, "tool.execution")
            return True
        answers: list[list[str]] = answer["answers"]
        pairs = ", ".join(
            f'"{question["question"]}"="{", ".join(labels) or "Unanswered"}"'
            for question, labels in zip(questions, answers, strict=False)
        )
        output = (
            f"User has answered your questions: {pairs}. You can now continue with the user's answers in mind"
        )
        plural = "" if len(questions) == 1 else "s"
        self._complete(part, f"{output}.", f"Asked {len(questions)} question{plural}", {"answers": answers})
        return True

    async def _delegate(self, message: Json, call: SubAgent, start_child: StartChild) -> bool:
        arguments = {"description": call.description, "prompt": call.prompt, self._wording.agent: call.agent}
        part = self._open(message, self._wording.sub_agent, arguments)
        parent: str = part["sessionID"]
        child = self._store.create_session(
            self._store.sessions[parent]["directory"],
            title=self._wording.child_title.format(description=call.description, agent=call.agent),
            parent=parent,
            agent=call.agent,
        )
        metadata: Json = {"parentSessionId": parent, "sessionId": child["id"]}
        part["state"] |= {"title": call.description, "metadata": metadata}
        self._store.voice.part_changed(part)
        await start_child(child["id"], call.prompt, call.reply)
        texts = [
            part["text"] for part in self._store.messages[child["id"]][-1]["parts"] if part["type"] == "text"
        ]
        output = self._wording.child_result.format(id=child["id"], text="".join(texts))
        self._complete(part, output, call.description, dict(metadata))
        return True

    async def _wait(self, kind: Kind, body: Json) -> Json | None:
        open_ones = self.permissions if kind == "permission" else self.questions
        directory: str = self._store.sessions[body["sessionID"]]["directory"]
        request = open_ones[body["id"]] = Request(kind=kind, body=body, directory=directory)
        self._store.voice.asked(kind, body)
        await request.answered.wait()
        return request.answer


def _question(question: Question) -> Json:
    options = [{"label": label, "description": f"Choose {label}"} for label in question.options]
    body: Json = {"question": question.question, "header": question.header, "options": options}
    if question.multiple is not None:
        body["multiple"] = question.multiple
    if question.custom is not None:
        body["custom"] = question.custom
    if question.field:
        body["field"] = question.field
    return body
