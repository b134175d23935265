"""The prompts that came in to OpenCode 2.x and wait for their turn."""

from typing import Any

from opencode_mcp.testing._ids import now_ms
from opencode_mcp.testing._store import Store
from opencode_mcp.testing._v2_voice import CurrentVoice
from opencode_mcp.testing.script import Reply

Json = dict[str, Any]


class ConflictError(Exception):
    """The id of a prompt is taken by another one."""


class Inbox:
    """What waits, in each session.

    Attributes:
        replies: How to answer a prompt, by its id, where neither the script nor the default decides.
    """

    def __init__(self, store: Store, voice: CurrentVoice) -> None:
        self.replies: dict[str, Reply] = {}
        self._store = store
        self._voice = voice
        self._waiting: dict[str, list[Json]] = {}
        self._known: dict[str, Json] = {}

    def of(self, session_id: str) -> list[Json]:
        """Return what waits in a session, oldest first."""
        return self._waiting.get(session_id, [])

    def admit(self, session_id: str, text: str, delivery: str, item_id: str = "") -> Json:
        """Take a prompt in; one that is known already changes nothing.

        Raises:
            ConflictError: The id belongs to another prompt.
        """
        known = self._known.get(item_id)
        if known is not None:
            if known["sessionID"] != session_id or known["payload"]["text"] != text:
                raise ConflictError
            return known
        item: Json = {
            "id": item_id or self._store.ids.new("msg"),
            "sessionID": session_id,
            "type": "user",
            "payload": {"text": text},
            "delivery": delivery,
            "created": now_ms(),
            "seq": len(self._known) + 1,
        }
        self._known[item["id"]] = item
        self._waiting.setdefault(session_id, []).append(item)
        told = {key: item[key] for key in ("type", "payload", "delivery")}
        self._voice.publish(session_id, "session.inbox.enqueued", inboxID=item["id"], item=told)
        return item

    def deliver(self, session_id: str, *, queued: bool) -> list[Json]:
        """Hand out all prompts that steer; if there are none, and `queued` may go, the oldest of those."""
        waiting = self.of(session_id)
        items = [item for item in waiting if item["delivery"] == "steer"] or (waiting[:1] if queued else [])
        for item in items:
            waiting.remove(item)
            self._voice.publish(session_id, "session.inbox.delivered", inboxID=item["id"])
        return items

    def cancel(self, session_id: str, item_id: str) -> None:
        """Take a prompt out; no error if it is not there."""
        for item in [item for item in self.of(session_id) if item["id"] == item_id]:
            self.of(session_id).remove(item)
            self._voice.publish(session_id, "session.inbox.cancelled", inboxID=item_id)

    def redirect(self, session_id: str, item_id: str, delivery: str) -> None:
        """Let a prompt steer instead of wait, or the other way round."""
        for item in self.of(session_id):
            if item["id"] == item_id and item["delivery"] != delivery:
                item["delivery"] = delivery
                self._voice.publish(
                    session_id, "session.inbox.delivery.changed", inboxID=item_id, delivery=delivery
                )

    def forget(self, session_id: str) -> None:
        """Drop what waits in a session that goes."""
        self._waiting.pop(session_id, None)
