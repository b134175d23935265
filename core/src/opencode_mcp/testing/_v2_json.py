"""The JSON of OpenCode 2.x, made from what the store holds, which tests may have filled with odd things."""

from collections.abc import Mapping
from typing import Any, cast

from opencode_mcp.testing._store import Store

Json = dict[str, Any]

MODEL: Json = {"id": "fake", "providerID": "fake"}
_AS_THEY_ARE = ("id", "parentID", "projectID", "agent", "model", "cost", "outcome", "time")
_ERRORS: dict[str, Json] = {
    "APIError": {"type": "provider.invalid-request", "status": 400},
    "MessageAbortedError": {"type": "aborted", "message": "Step interrupted"},
    "UnknownError": {"type": "provider.no-route"},
}


def session(stored: Json) -> Json:
    """Return a session; what it does not have is left out."""
    found: Json = {key: stored[key] for key in _AS_THEY_ARE if key in stored}
    if stored["title"]:
        found["title"] = stored["title"]
    return found | {"tokens": tokens(stored["tokens"]), "location": {"directory": stored["directory"]}}


def tokens(stored: Json) -> Json:
    """Return a count of tokens."""
    return {key: stored[key] for key in ("input", "output", "reasoning", "cache")}


def error(stored: Mapping[str, Any]) -> Json:
    """Return an error of a provider, or an abort."""
    message = stored.get("data", {}).get("message", "")
    return {"message": message, **_ERRORS.get(stored.get("name", ""), {"type": "unknown"})}


def prompt(item: Json, preview: bool) -> Json:
    """Return a prompt in the inbox."""
    base = {key: item[key] for key in ("id", "sessionID", "type", "delivery")}
    if preview:
        return base | {"data": item["payload"], "timeCreated": item["created"], "admittedSeq": item["seq"]}
    return base | {"payload": item["payload"], "time": {"created": item["created"]}}


def permission(body: Json, preview: bool) -> Json:
    """Return a permission request."""
    return {
        "id": body["id"],
        "sessionID": body["sessionID"],
        "action": body["permission"],
        "resources": body["patterns"],
        "save": body["always"],
        "source": {
            "type": "tool",
            "messageID": body["tool"]["messageID"],
            ("callID" if preview else "id"): body["tool"]["callID"],
        },
    }


def form(body: Json, preview: bool) -> Json:
    """Return questions as a form."""
    called = {"messageID": body["tool"]["messageID"], ("callID" if preview else "id"): body["tool"]["callID"]}
    return {
        "id": body["id"],
        "sessionID": body["sessionID"],
        "title": "Questions",
        "metadata": {"kind": "question", "tool": called},
        "fields": [field(question, number) for number, question in enumerate(body["questions"])],
    }


def field(question: Json, number: int) -> Json:
    """Return one question as a field of a form."""
    options = [{"value": option["label"], **option} for option in question["options"]]
    return {
        "key": f"q{number}",
        "title": question["header"],
        "description": question["question"],
        "type": question.get("field") or ("multiselect" if question.get("multiple") else "string"),
        "options": options,
        "custom": question.get("custom", True),
    }


class Messages:
    """Renders the messages of a store."""

    def __init__(self, store: Store, *, preview: bool) -> None:
        self._store = store
        self._preview = preview

    def of(self, session_id: str) -> list[Json]:
        """Return the messages of a session, oldest first, with what stands in between."""
        found: list[Json] = []
        for stored in self._store.messages[session_id]:
            found += [self._message(stored), *stored.get("after", ())]
        return found

    def _message(self, stored: Json) -> Json:
        info: Json = stored["info"]
        message: Json = {key: info[key] for key in ("id", "time") if key in info}
        message["type"] = info.get("role")
        if message["type"] != "assistant":
            return message | {"text": "".join(part.get("text", "") for part in stored["parts"])}
        message |= {
            "agent": info.get("agent", "build"),
            "model": {"id": info.get("modelID"), "providerID": info.get("providerID")},
            "content": [shown for part in stored["parts"] if (shown := self._content(part))],
        }
        if "finish" in info:
            message |= {
                "finish": info["finish"],
                "cost": info.get("cost", 0),
                "tokens": tokens(info["tokens"]),
            }
        if "error" in info:
            message |= {"finish": "error", "error": error(info["error"])}
        return message

    def _content(self, part: Json) -> Json | None:
        match part["type"]:
            case "text":
                return {"type": "text", "text": part["text"]}
            case "reasoning":
                return {"type": "reasoning", "text": part["text"], "time": _spent(part["time"])}
            case "tool":
                return self._tool(part)
            case _:
                return None

    def _tool(self, part: Json) -> Json:
        state: Json = part["state"]
        times = cast("Json", state.get("time", {}))
        spent: Json = {"created": times.get("start", 0)}
        if "start" in times:
            spent["ran"] = times["start"]
        if "end" in times:
            spent["completed"] = times["end"]
        shown: Json = {"type": "tool", "id": part["callID"], "name": part["tool"], "executed": False}
        return shown | {"state": self._state(part), "time": spent}

    def _state(self, part: Json) -> Json:
        state: Json = part["state"]
        given: Json = {"input": state["input"]}
        about: Json = self.about(state.get("metadata", {}))
        match state["status"]:
            case "completed":
                return {"status": "completed", **given, "content": output(state), **about}
            case "error":
                return {"status": "error", **given, "error": self.failure(part), **about}
            case "running":
                return {"status": "running", **given, **about}
            case _:
                return {"status": "streaming", "input": state.get("raw", "")}

    def about(self, metadata: Json) -> Json:
        """Return what a tool says about its work, under the name it has."""
        if "sessionId" in metadata:
            metadata = {"sessionID": metadata["sessionId"]}
        return {"structured" if self._preview else "metadata": metadata}

    def failure(self, part: Json) -> Json:
        """Return the error of a tool call."""
        kind = self._store.errors.get(part["id"], "unknown")
        return {"type": kind, "message": part["state"]["error"]}


def output(state: Json) -> list[Json]:
    """Return what a tool call returned."""
    return [{"type": "text", "text": state["output"]}]


def _spent(times: Json) -> Json:
    return {"created": times["start"], **({"completed": times["end"]} if "end" in times else {})}
