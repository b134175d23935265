"""Makes a report safe to show to strangers: secrets and the home directory are taken out of every string."""

import base64
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

from opencode_mcp.settings import sounds_secret
from opencode_mcp.text import clean_line

_SHOWN = 1_000
"""Characters of a line of a report."""

_HIDDEN = "[secret]"
_SHORTEST_DECLARED = 3
_SHORTEST_GUESSED = 6
_PARTS = re.compile(r"[\s,;]+")
"""What stands between the secrets of a list, or the words of a command."""
_LOGIN_IN_URL = re.compile(r"(?<=://)\S*@")
"""To the last @: a password may hold whatever a URL may not."""

T = TypeVar("T")


class Redactor:
    """Takes secrets and the home directory out of texts.

    Variables of the environment that sound like secrets are taken for such; others have to be declared.
    """

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        homes = {os.environ.get("HOME", "").rstrip("/"), _home()}
        self._homes = [
            re.compile(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])") for home in homes if len(home) > 1
        ]
        self._learn(filter(sounds_secret, os.environ), _SHORTEST_GUESSED)

    def declare(self, variables: Iterable[str]) -> None:
        """Learn that `variables` hold secrets."""
        self._learn(variables, _SHORTEST_DECLARED)

    def line(self, text: str) -> str:
        """Make one safe line of `text`, without secrets."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = _without_beginnings(text.replace(secret, _HIDDEN), secret)
        text = _LOGIN_IN_URL.sub(f"{_HIDDEN}@", text)
        for home in self._homes:
            text = home.sub("~", text)
        return clean_line(text, _SHOWN)

    def __call__(self, report: T) -> T:
        """Return `report`, a dataclass, with every string in it made safe."""
        return cast("T", self._safe(report))

    def _safe(self, value: Any) -> Any:
        if type(value) is str:  # not a state, which is one of a few words
            return self.line(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {one.name: self._safe(getattr(value, one.name)) for one in dataclasses.fields(value)}
            return dataclasses.replace(value, **fields)
        if isinstance(value, Mapping):
            mapping = cast("Mapping[str, Any]", value)
            return {self.line(key): self._safe(one) for key, one in mapping.items()}
        if isinstance(value, list | tuple):
            return [self._safe(one) for one in cast("Sequence[Any]", value)]
        return value

    def _learn(self, variables: Iterable[str], shortest: int) -> None:
        username = os.environ.get("OPENCODE_SERVER_USERNAME") or "opencode"
        for name in variables:
            secret = os.environ.get(name, "")
            if len(secret) < shortest:
                continue  # it would be found in every other word, and so be told
            parts = [one for one in _PARTS.split(secret) if len(one) >= _SHORTEST_GUESSED]
            for one in (secret, *parts):
                login = f"{username}:{one}".encode(errors="surrogateescape")
                self._secrets |= {one, clean_line(one, len(one)), repr(one)[1:-1]}
                self._secrets |= {base64.b64encode(login).decode(), quote(one, "", errors="surrogateescape")}
            self._secrets.discard("")


def _without_beginnings(text: str, secret: str) -> str:
    """Take out what is left of a secret where somebody cut it off, and wrote "…"."""
    head = secret[:_SHORTEST_GUESSED]
    end = text.find("…") if len(secret) > len(head) else -1
    while end >= 0:
        at = text.find(head, max(0, end - len(secret)), end)
        while at >= 0 and not secret.startswith(text[at:end]):
            at = text.find(head, at + 1, end)
        if at >= 0:
            text = f"{text[:at]}{_HIDDEN}{text[end:]}"
            end = at + len(_HIDDEN)
        end = text.find("…", end + 1)
    return text


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:  # there is none
        return ""
