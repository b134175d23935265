"""What a fake OpenCode's model does with a prompt: plain descriptions, without any machinery."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import anyio


class Gate:
    """Holds back deltas until the test lets them pass, one by one."""

    def __init__(self) -> None:
        self._permits = anyio.Semaphore(0)
        self._open = False

    def release(self, count: int = 1) -> None:
        """Let the next `count` deltas pass."""
        for _ in range(count):
            self._permits.release()

    def open(self) -> None:
        """Hold nothing back any more."""
        self._open = True
        self.release()

    async def pass_through(self) -> None:
        """Wait until a delta may pass."""
        if not self._open:
            await self._permits.acquire()
        if self._open:  # wake whoever else waits
            self._permits.release()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A step in which the model calls a tool.

    Attributes:
        tool: The tool's name.
        input: Its arguments; by default a command for `bash`.
        output: What it returns.
        fails: The error it ends with instead; the model goes on.
        asks: Whether it needs a permission first. `once` and `always` run it, `reject` with a message fails
            it and the model goes on, `reject` without ends the turn.
        patterns: What the permission is asked for; by default the command.
        always: What a reply of `always` allows from then on.
        says: Text of the model before the call, in the same message.
    """

    tool: str = "bash"
    input: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"command": "echo hi", "description": "Say hi"}
    )
    output: str = "hi\n"
    fails: str | None = None
    asks: bool = False
    patterns: Sequence[str] = ()
    always: Sequence[str] = ("echo *",)
    says: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question of the agent to the user.

    Attributes:
        question: The whole question.
        header: A label of a few words.
        options: The labels to choose from.
        multiple: Whether several may be chosen; None leaves it out, as OpenCode does by default.
        custom: Whether free text is welcome; None leaves it out.
        field: In 2.x, the type of the form's field; by default `string`, or `multiselect` for several.
    """

    question: str = "Which colour?"
    header: str = "Colour"
    options: Sequence[str] = ("Red", "Blue")
    multiple: bool | None = None
    custom: bool | None = None
    field: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """A step in which the model asks the user, by the tool `question`; rejected, it ends the turn."""

    questions: Sequence[Question] = (Question(),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubAgent:
    """A step in which the model starts a sub-agent, by the tool `task`: a child session that runs `reply`."""

    reply: "Reply"
    description: str = "Look around"
    prompt: str = "Look around and report"
    agent: str = "general"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """How the model answers one prompt.

    Attributes:
        text: The final text, streamed in pieces of two words.
        chunks: The final text in the very pieces in which to stream it; instead of `text`.
        reasoning: Pieces of reasoning, streamed first.
        tools: Steps before the final text, each an assistant message of its own. In 2.x, a prompt that steers
            joins the answer between two steps: what is left of the reply answers both.
        delay: Seconds before each delta.
        gate: Holds each delta back until the test releases it.
        error: The provider fails with this message after the text: `APIError`, in 2.x
            `provider.invalid-request`.
        bad_model: The model does not exist: no assistant message at all.
        never_finishes: Stay busy after the text, until aborted.
    """

    text: str = ""
    chunks: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    tools: Sequence[ToolCall | Ask | SubAgent] = ()
    delay: float = 0.0
    gate: Gate | None = None
    error: str | None = None
    bad_model: bool = False
    never_finishes: bool = False

    @property
    def pieces(self) -> Sequence[str]:
        """The deltas of the final text."""
        if self.chunks:
            return self.chunks
        words = self.text.split(" ")
        pairs = [" ".join(words[start : start + 2]) for start in range(0, len(words), 2)]
        return [pair + " " for pair in pairs[:-1]] + ([pairs[-1]] if pairs[-1] else [])


def echo(text: str) -> Reply:
    """Answer `You said: <text>`, visibly in pieces."""
    return Reply(text=f"You said: {text}", delay=0.02)
