"""What happens inside a tool step: a permission, a question, a sub-agent, or just an answer."""

import asyncio
import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from opencode_mcp.testing._ids import now_ms
from opencode_mcp.testing._store import Store
from opencode_mcp.testing.script import Ask, Question, Reply, SubAgent, ToolCall

Json = dict[str, Any]
StartChild = Callable[[str, str, Reply], Awaitable[None]]

_REJECTED = "The user rejected permission to use this specific tool call"


@dataclasses.dataclass(kw_only=True)
class Request:
    """A permission or a question that waits for the user.

    Attributes:
        body: The request, as OpenCode lists it.
        directory: The project in which it can be found.
        answer: The body of the reply, once there is one; None for a dismissed question.
        answered: Set with it.
    """

    body: Json
    directory: str
    answer: Json | None = None
    answered: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Tools:
    """Runs tool steps and keeps what they ask.

    Attributes:
        permissions: Open permission requests by id; one whose turn was aborted stays.
        questions: Open questions by id.
    """

    def __init__(self, store: Store) -> None:
        self.permissions: dict[str, Request] = {}
        self.questions: dict[str, Request] = {}
        self._allowed: set[str] = set()
        self._store = store
        self._calls = itertools.count(1)

    def clear(self) -> None:
        """Forget what is open and allowed, as a restart does."""
        self.permissions.clear()
        self.questions.clear()
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
                feedback = answer.get("message")
                self._fail(
                    part,
                    f"{_REJECTED} with the following feedback: {feedback}" if feedback else f"{_REJECTED}.",
                )
                return bool(feedback)
        if call.fails is not None:
            self._fail(part, call.fails)
            return True
        for output in ("", call.output):
            part["state"]["metadata"] = {"output": output}
            self._store.publish_part(part)
        title = str(call.input.get("command", ""))
        self._complete(part, call.output, title, {"output": call.output, "exit": 0})
        return True

    def reply_permission(self, request_id: str, directory: str, answer: Json) -> bool:
        """Answer a permission request; False if that directory has none of this id."""
        request = self._take(self.permissions, request_id, directory)
        if request is None:
            return False
        if answer["reply"] == "always":
            self._allowed.update(request.body["always"])
        self._publish(request, "permission.replied", reply=answer["reply"])
        self._answer(request, answer)
        return True

    def reply_question(self, request_id: str, directory: str, answers: list[list[str]] | None) -> bool:
        """Answer a question, or dismiss it with None; False if that directory has none of this id."""
        request = self._take(self.questions, request_id, directory)
        if request is None:
            return False
        if answers is None:
            self._publish(request, "question.rejected")
            self._answer(request, None)
        else:
            self._publish(request, "question.replied", answers=answers)
            self._answer(request, {"answers": answers})
        return True

    def interrupt(self, message: Json) -> None:
        """Close the tool that an abort cuts off."""
        for part in message["parts"]:
            if part["type"] == "tool" and part["state"]["status"] in ("pending", "running"):
                part["state"]["metadata"] = {"interrupted": True}
                self._fail(part, "Tool execution aborted")

    def _open(self, message: Json, tool: str, arguments: Mapping[str, Any]) -> Json:
        state: Json = {"status": "pending", "input": {}, "raw": ""}
        call_id = f"call_{next(self._calls)}"
        part = self._store.add_part(
            message, {"type": "tool", "tool": tool, "callID": call_id, "state": state}
        )
        part["state"] = {"status": "running", "input": dict(arguments), "time": {"start": now_ms()}}
        self._store.publish_part(part)
        return part

    def _fail(self, part: Json, error: str) -> None:
        part["state"] |= {"status": "error", "error": error}
        part["state"]["time"]["end"] = now_ms()
        self._store.publish_part(part)

    def _complete(self, part: Json, output: str, title: str, metadata: Json) -> None:
        metadata["truncated"] = False
        part["state"] |= {"status": "completed", "output": output, "title": title, "metadata": metadata}
        part["state"]["time"]["end"] = now_ms()
        self._store.publish_part(part)

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
        return await self._wait(self.permissions, "permission.asked", body) or {"reply": "reject"}

    async def _ask(self, message: Json, call: Ask) -> bool:
        questions = [_question(question) for question in call.questions]
        part = self._open(message, "question", {"questions": questions})
        body: Json = {
            "id": self._store.ids.new("que"),
            "sessionID": part["sessionID"],
            "questions": questions,
            "tool": {"messageID": part["messageID"], "callID": part["callID"]},
        }
        answer = await self._wait(self.questions, "question.asked", body)
        if answer is None:
            self._fail(part, "The user dismissed this question")
            return False
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
        arguments = {"description": call.description, "prompt": call.prompt, "subagent_type": call.agent}
        part = self._open(message, "task", arguments)
        parent: str = part["sessionID"]
        child = self._store.create_session(
            self._store.sessions[parent]["directory"],
            title=f"{call.description} (@{call.agent} subagent)",
            parent=parent,
            agent=call.agent,
        )
        metadata: Json = {"parentSessionId": parent, "sessionId": child["id"]}
        part["state"] |= {"title": call.description, "metadata": metadata}
        self._store.publish_part(part)
        await start_child(child["id"], call.prompt, call.reply)
        texts = [
            part["text"] for part in self._store.messages[child["id"]][-1]["parts"] if part["type"] == "text"
        ]
        result = f"<task_result>\n{''.join(texts)}\n</task_result>"
        output = f'<task id="{child["id"]}" state="completed">\n{result}\n</task>'
        self._complete(part, output, call.description, dict(metadata))
        return True

    async def _wait(self, requests: dict[str, Request], kind: str, body: Json) -> Json | None:
        directory: str = self._store.sessions[body["sessionID"]]["directory"]
        request = requests[body["id"]] = Request(body=body, directory=directory)
        self._store.publish(body["sessionID"], kind, body)
        await request.answered.wait()
        return request.answer

    def _take(self, requests: dict[str, Request], request_id: str, directory: str) -> Request | None:
        request = requests.get(request_id)
        if request is None or request.directory != directory:
            return None
        return requests.pop(request_id)

    def _publish(self, request: Request, kind: str, **properties: Any) -> None:
        session_id: str = request.body["sessionID"]
        if session_id in self._store.sessions:
            self._store.publish(session_id, kind, {"requestID": request.body["id"], **properties})

    def _answer(self, request: Request, answer: Json | None) -> None:
        request.answer = answer
        request.answered.set()


def _question(question: Question) -> Json:
    options = [{"label": label, "description": f"Choose {label}"} for label in question.options]
    body: Json = {"question": question.question, "header": question.header, "options": options}
    if question.multiple is not None:
        body["multiple"] = question.multiple
    if question.custom is not None:
        body["custom"] = question.custom
    return body
