"""The events of OpenCode 1.18.33."""

import copy
from typing import Any

from opencode_mcp.testing._bus import Bus
from opencode_mcp.testing._ids import now_ms
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._voice import Kind

Json = dict[str, Any]


class ClassicVoice:
    """Says what happens in the words of 1.x."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    def publish(self, session_id: str, kind: str, properties: Json) -> None:
        """Publish an event of a session, as it is at this moment."""
        directory = self._store.sessions[session_id]["directory"]
        self._bus.publish(kind, {"sessionID": session_id, **copy.deepcopy(properties)}, directory)

    def session_created(self, session: Json) -> None:
        """Say `session.created`."""
        self.publish(session["id"], "session.created", {"info": session})

    def session_changed(self, session: Json, changes: Json) -> None:
        """Say `session.updated`."""
        self.publish(session["id"], "session.updated", {"info": session})

    def session_moved(self, session: Json) -> None:
        """Say `session.updated`."""
        self.publish(session["id"], "session.updated", {"info": session})

    def session_deleted(self, session: Json) -> None:
        """Say `session.deleted`."""
        self.publish(session["id"], "session.deleted", {"info": session})

    def status_changed(self, session_id: str, status: str) -> None:
        """Say `session.status`, and once more if it is idle."""
        self.publish(session_id, "session.status", {"status": {"type": status}})
        if status == "idle":
            self.publish(session_id, "session.idle", {})

    def message_added(self, message: Json) -> None:
        """Say `message.updated`."""
        self.publish(message["info"]["sessionID"], "message.updated", {"info": message["info"]})

    def message_completed(self, message: Json) -> None:
        """Say `message.updated`, twice if nothing went wrong."""
        for _ in range(2 if "finish" in message["info"] else 1):
            self.message_added(message)

    def part_added(self, part: Json) -> None:
        """Say `message.part.updated`."""
        self.publish(part["sessionID"], "message.part.updated", {"part": part, "time": now_ms()})

    def part_changed(self, part: Json) -> None:
        """Say `message.part.updated`."""
        self.part_added(part)

    def delta(self, part: Json, text: str) -> None:
        """Say `message.part.delta`."""
        properties = {
            "messageID": part["messageID"],
            "partID": part["id"],
            "field": "text",
            "delta": text,
        }
        self.publish(part["sessionID"], "message.part.delta", properties)

    def asked(self, kind: Kind, body: Json) -> None:
        """Say `permission.asked` or `question.asked`."""
        self.publish(body["sessionID"], f"{kind}.asked", body)

    def answered(self, kind: Kind, body: Json, answer: Json | None) -> None:
        """Say `permission.replied`, `question.replied` or `question.rejected`."""
        said: Json = {"requestID": body["id"]}
        if answer is None:
            self.publish(body["sessionID"], f"{kind}.rejected", said)
            return
        said |= {"reply": answer["reply"]} if kind == "permission" else {"answers": answer["answers"]}
        self.publish(body["sessionID"], f"{kind}.replied", said)
