"""A standard test of what strangers publish: it is cleaned or left out with a reason, and harms no other."""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import anyio
import pytest
from pydantic import ValidationError

from opencode_mcp.model import Endpoint, Rejection
from opencode_mcp.testing._claims import Claims
from opencode_mcp.testing._connecting import only
from opencode_mcp.testing._log import logged
from opencode_mcp.testing._trial import Trial, Watching, fail, require
from opencode_mcp.text import clean_text

_LONGEST_REJECTION = 2_000
_HONEST_URL = "http://ADDRESS"


class Hostile(NamedTuple):
    """Something that no transport may pass on as it is.

    Attributes:
        what: What it is, in words.
        name: The name.
        url: The URL; `ADDRESS` stands for host and port of a server, `CANARY` for a secret.
    """

    what: str
    name: str = "stranger"
    url: str = _HONEST_URL


_HOSTILE = (
    Hostile("a name that colours a terminal", name="\x1b[31mred\x1b[0m"),
    Hostile("a name that sets the title of a terminal", name="\x1b]0;owned\x07title"),
    Hostile("a name with control characters", name="bell\x07back\x08del\x7fcsi\x9b2J"),
    Hostile("a name of two lines", name="line\r\nInstance: another"),
    Hostile("a name with line separators", name="line\u2028separated\u2029twice"),
    Hostile("a name that is read from right to left", name="web\u202egnp.sh"),
    Hostile("a name with invisible characters", name="web\u200b\u2066\ufeff\U000e0041"),
    Hostile("a name of 100,000 characters", name="x" * 100_000),
    Hostile("no name", name=""),
    Hostile("a name of blanks", name="   "),
    Hostile("a URL with credentials", url="http://me:CANARY@ADDRESS"),
    Hostile("a URL with a secret in its query", url="http://ADDRESS/?token=CANARY"),
    Hostile("a javascript: URL", url="javascript:alert(1)"),
    Hostile("a file: URL", url="file:///etc/passwd"),
    Hostile("a URL with a port that does not exist", url="http://127.0.0.1:99999"),
    Hostile("a URL with escape sequences", url="http://ADDRESS/\x1b[31m\r\nX-Header: 1"),
    Hostile("a URL with a blank", url="http://ADDRESS /"),
    Hostile("a URL without a host", url="http://"),
    Hostile("no URL", url=""),
    Hostile("a URL of 100,000 characters", url="http://ADDRESS/" + "x" * 100_000),
)


class HostileTests(Claims):
    """The part of `TransportSuite` about strangers."""

    async def test_hostile_values_are_contained(self, trial: Trial) -> None:
        """What strangers publish is cleaned or left out with a reason, and harms no other."""
        canary = f"canary{secrets.token_hex(16)}"
        with logged() as lines:
            await trial.publish(key="honest", name="honest")
            tried = 0
            async with trial.watching() as watching:
                honest = await only(watching)
                for hostile in _HOSTILE:
                    tried += await _try(trial, watching, honest, hostile, canary)
                states = watching.states(honest.id)
        require(
            all(states[next(at for at, one in enumerate(states) if one) :]),
            "An honest endpoint was missing in a set while another one was published beside it.",
        )
        require(
            canary not in "\n".join(lines),
            "The password in the URL of a stranger is in its log. Log where something was found, not what.",
        )
        if not tried:
            pytest.skip("The publisher can publish none of the hostile values.")


async def _try(trial: Trial, watching: Watching, honest: Endpoint, hostile: Hostile, canary: str) -> bool:
    """Publish something hostile beside what is honest; return whether that is possible at all."""
    what, transport = hostile.what, watching.transport
    key = f"hostile{_HOSTILE.index(hostile)}"  # each its own: on a network, a name that was left lingers
    before = [*transport.rejected()]
    async with trial.serving() as stranger:
        address = stranger.url.removeprefix("http://")
        url = hostile.url.replace("ADDRESS", address).replace("CANARY", canary)
        try:
            await trial.publisher.publish(url, key=key, name=hostile.name)
        except ValueError:  # UnicodeEncodeError among them
            return False
        await _require_contained(trial, watching, honest, hostile, before, canary)
    await trial.publisher.withdraw(key)
    await trial.until(
        lambda: set(watching.now) == {honest.id} and [*transport.rejected()] == before,
        lambda: (
            f"{what} was withdrawn, but is listed or among `rejected()` still. Now published: "
            f"{watching.shown}."
        ),
    )
    return True


async def _require_contained(
    trial: Trial,
    watching: Watching,
    honest: Endpoint,
    hostile: Hostile,
    before: Sequence[Rejection],
    canary: str,
) -> None:
    """Wait until something hostile was noticed, and check what became of it."""
    what, transport = hostile.what, watching.transport

    def noticed() -> bool:
        others = set(watching.now) - {honest.id}
        return watching.ended.is_set() or bool(others) or [*transport.rejected()] != before

    with anyio.move_on_after(trial.patience) as patience:
        while not noticed():  # noqa: ASYNC110 - nobody tells of rejections
            await anyio.sleep(0.01)
    require(
        not watching.ended.is_set(),
        f"Somebody published {what}, and `watch` ended: {watching.failure!r}. Leave out that one, with the "
        "reason in `rejected()`, and go on with the others.",
    )
    require(
        not patience.cancelled_caught,
        f"Somebody published {what}; it is not listed, and `rejected()` does not say why.",
    )
    for endpoint in watching.now.values():
        _check_endpoint(endpoint, what, canary)
    for one in transport.rejected():
        _check_rejection(one, what, canary)
    require(
        honest.id in watching.now, f"Somebody published {what}, and an honest endpoint beside it is gone."
    )


def _check_endpoint(endpoint: Endpoint, what: str, canary: str) -> None:
    try:
        Endpoint.model_validate(endpoint.model_dump(warnings=False))
    except (ValidationError, AttributeError) as error:
        fail(
            f"Somebody published {what}, and an endpoint was published that is not valid: "
            f"{clean_text(str(error), 500)}. Make endpoints by `Endpoint(...)`, which checks them."
        )
    require(
        not canary or canary not in endpoint.model_dump_json(),
        f"Somebody published {what}, and an endpoint shows the secret in it.",
    )


def _check_rejection(one: Rejection, what: str, canary: str) -> None:
    text = f"{one.source}\n{one.reason}"
    require(
        text == clean_text(text),
        f"Somebody published {what}, and `rejected()` passes it on as it is: {text[:200]!r}. Put what "
        "strangers wrote through `opencode_mcp.clean_line`, or leave it out.",
    )
    require(
        len(text) <= _LONGEST_REJECTION,
        f"Somebody published {what}, and `rejected()` returns {len(text)} characters about it; "
        f"{_LONGEST_REJECTION} is the most.",
    )
    require(one.reason.strip(), f"Somebody published {what}, and its Rejection has no reason.")
    require(
        not canary or canary not in text,
        f"Somebody published {what}, and `rejected()` shows the secret in it. Do not quote what was refused.",
    )
