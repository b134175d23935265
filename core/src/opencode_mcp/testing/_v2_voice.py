"""The events of OpenCode 2.x."""

import copy
import json
from collections import Counter
from typing import Any

from opencode_mcp.testing import _v2_json as shape
from opencode_mcp.testing._ids import now_ms
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._v2_events import Feed
from opencode_mcp.testing._voice import Kind

Json = dict[str, Any]

_PREVIEW_NAMES = {
    "permission.asked": "permission.v2.asked",
    "permission.replied": "permission.v2.replied",
    "session.inbox.enqueued": "session.input.admitted",
    "session.inbox.delivered": "session.input.promoted",
}


class CurrentVoice:
    """Says what happens in the words of 2.x.

    Attributes:
        preview: Whether in those of its preview.
    """

    def __init__(self, store: Store, feed: Feed, messages: shape.Messages, *, preview: bool) -> None:
        self._store = store
        self._feed = feed
        self._messages = messages
        self.preview = preview
        self._ordinals: dict[str, int] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._streamed: set[str] = set()

    def publish(self, session_id: str, kind: str, **data: Any) -> None:
        """Publish an event of a session, as it is at this moment."""
        name = _PREVIEW_NAMES.get(kind, kind) if self.preview else kind
        directory = self._store.sessions[session_id]["directory"]
        self._feed.publish(name, {"sessionID": session_id, **copy.deepcopy(data)}, directory)

    def mark(self, session_id: str, kind: str, **more: Any) -> None:
        """Put something between the messages that is none, such as the end of an execution."""
        stored = self._store.messages[session_id]
        if stored and not self.preview:
            entry = {"id": self._store.ids.new("msg"), "type": kind, "time": {"created": now_ms()}, **more}
            stored[-1].setdefault("after", []).append(entry)

    def session_created(self, session: Json) -> None:
        """Say `session.created`."""
        known = {key: session[key] for key in ("parentID", "agent", "model") if key in session}
        if session["title"]:
            known["title"] = session["title"]
        self.publish(
            session["id"],
            "session.created",
            projectID=session["projectID"],
            location={"directory": session["directory"]},
            slug=session["slug"],
            version=session["version"],
            **known,
        )

    def session_changed(self, session: Json, changes: Json) -> None:
        """Say `session.renamed`; other changes are not told."""
        if "title" in changes:
            self.publish(session["id"], "session.renamed", title=session["title"])

    def session_moved(self, session: Json) -> None:
        """Say `session.moved`, and note it between the messages."""
        location = {"directory": session["directory"]}
        self.mark(session["id"], "location-switched", location=location)
        self.publish(session["id"], "session.moved", location=location, projectID=session["projectID"])

    def session_deleted(self, session: Json) -> None:
        """Say `session.deleted`."""
        self.publish(session["id"], "session.deleted")

    def status_changed(self, session_id: str, status: str) -> None:
        """Say `session.status` and `session.idle`, as the preview did."""
        if self.preview:
            self.publish(session_id, "session.status", status={"type": status})
            if status == "idle":
                self.publish(session_id, "session.idle")

    def message_added(self, message: Json) -> None:
        """Say `session.step.started`; prompts are told by the inbox."""
        info: Json = message["info"]
        if info["role"] == "assistant":
            model = {"id": info["modelID"], "providerID": info["providerID"]}
            self._step(info, "started", agent=info["agent"], model=model, started=info["time"]["created"])

    def message_completed(self, message: Json) -> None:
        """Say `session.step.ended` or `.failed`, and what was used."""
        info: Json = message["info"]
        self._end_of_response(info)
        if "error" in info:
            self._step(info, "failed", error=shape.error(info["error"]))
            return
        used = {"cost": 0, "tokens": shape.tokens(info["tokens"])}
        self._step(info, "ended", finish=info["finish"], **used)
        self.used(info["sessionID"])

    def used(self, session_id: str) -> None:
        """Say what the session has used so far."""
        session = self._store.sessions[session_id]
        used = {"cost": session["cost"], "tokens": shape.tokens(session["tokens"])}
        self.publish(session_id, "session.usage.updated", **used)

    def part_added(self, part: Json) -> None:
        """Say that a text, a reasoning or the input of a tool begins."""
        if part["type"] == "tool":
            self._call(part, "input.started", name=part["tool"])
        elif part["type"] in ("text", "reasoning") and "time" in part:  # a prompt's text has none
            place = (part["messageID"], part["type"])
            self._ordinals[part["id"]] = self._counts[place]
            self._counts[place] += 1
            self._text(part, "started")

    def part_changed(self, part: Json) -> None:
        """Say that a text is whole, or how far a tool call is."""
        if part["type"] != "tool":
            self._text(part, "ended", text=part["text"])
            return
        state: Json = part["state"]
        about = self._messages.about(state.get("metadata", {}))
        if self.preview and state["status"] != "error":
            about["content"] = shape.output(state) if "output" in state else []
        if state["status"] == "completed":
            self._call(
                part, "success", content=shape.output(state), **_without(about, "content"), executed=False
            )
        elif state["status"] == "error":
            self._call(part, "failed", error=self._messages.failure(part), **about, executed=False)
        elif "metadata" in state:
            self._call(part, "progress", **about)
        else:
            text = json.dumps(state["input"])
            self._call(part, "input.delta", delta=text)
            self._call(part, "input.ended", text=text)
            self._call(part, "called", input=state["input"], executed=False)
            self._end_of_response({"sessionID": part["sessionID"], "id": part["messageID"]})

    def delta(self, part: Json, text: str) -> None:
        """Say `session.text.delta` or `session.reasoning.delta`."""
        self._text(part, "delta", delta=text)

    def asked(self, kind: Kind, body: Json) -> None:
        """Say `permission.asked` or `form.created`."""
        session_id: str = body["sessionID"]
        if kind == "permission":
            self.publish(
                session_id, "permission.asked", **_without(shape.permission(body, self.preview), "sessionID")
            )
        else:
            directory = self._store.sessions[session_id]["directory"]
            self._feed.publish("form.created", {"form": shape.form(body, self.preview)}, directory)

    def answered(self, kind: Kind, body: Json, answer: Json | None) -> None:
        """Say `permission.replied`, `form.replied` or `form.cancelled`."""
        session_id: str = body["sessionID"]
        if kind == "permission":
            reply = answer["reply"] if answer else "reject"
            self.publish(session_id, "permission.replied", requestID=body["id"], reply=reply)
        elif answer is None or "dismissed" in answer:
            self.publish(session_id, "form.cancelled", id=body["id"])
        else:
            self.publish(session_id, "form.replied", id=body["id"], answer=answer["form"])

    def _end_of_response(self, info: Json) -> None:
        if info["id"] not in self._streamed:
            self._streamed.add(info["id"])
            self._step(info, "streamed")

    def _step(self, info: Json, kind: str, **data: Any) -> None:
        self.publish(info["sessionID"], f"session.step.{kind}", assistantMessageID=info["id"], **data)

    def _text(self, part: Json, kind: str, **data: Any) -> None:
        place = {"assistantMessageID": part["messageID"], "ordinal": self._ordinals[part["id"]]}
        self.publish(part["sessionID"], f"session.{part['type']}.{kind}", **place, **data)

    def _call(self, part: Json, kind: str, **data: Any) -> None:
        call = {"callID" if self.preview else "id": part["callID"]}
        message_id = part["messageID"]
        self.publish(part["sessionID"], f"session.tool.{kind}", assistantMessageID=message_id, **call, **data)


def _without(record: Json, key: str) -> Json:
    return {name: value for name, value in record.items() if name != key}
