"""A standard test of the user's secrets: nothing that people see shows them."""

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, get_args

import anyio
import pytest

from opencode_mcp.errors import SettingsError
from opencode_mcp.settings import documented, secret_variables, sounds_secret
from opencode_mcp.testing._claims import Claims
from opencode_mcp.testing._connecting import only, reach
from opencode_mcp.testing._log import logged
from opencode_mcp.testing._trial import Trial, fail, require
from opencode_mcp.transport import Announcer, Announcing

_SHORTEST_CANARY = 12
_LOOK_SECONDS = 2.0


class Shown(NamedTuple):
    """Something that people can see, and what it is."""

    what: str
    text: str


class SecretTests(Claims):
    """The part of `TransportSuite` about secrets."""

    async def test_no_secret_is_shown(self, trial: Trial) -> None:
        """No secret is in a repr, a log, a label, an error or what people are told of announcing."""
        model = trial.plugin.settings
        hidden = secret_variables(model)
        for field in model.model_fields.values():
            variable = documented(field).variable
            plain = str in (field.annotation, *get_args(field.annotation))
            require(
                not (plain and sounds_secret(variable) and variable not in hidden),
                f"{variable} sounds like a secret, but is a str, which is shown. Make it a SecretStr.",
            )
        if not hidden:
            pytest.skip("It has no secret settings.")
        canaries = {
            one: trial.under_test.canaries.get(one) or f"canary{secrets.token_hex(16)}" for one in hidden
        }
        words = {word: one for one, value in canaries.items() for word in [value, *value.split()]}
        words = {word: one for word, one in words.items() if len(word) >= _SHORTEST_CANARY}
        require(
            set(words.values()) == set(hidden),
            f"Each value in `canaries` has to hold a word of {_SHORTEST_CANARY} characters or more.",
        )
        try:
            settings = await trial.under_test.read_settings(**canaries)
        except SettingsError as error:
            fail(
                f"A secret variable does not take just any word: {error} Give the TransportUnderTest of the "
                "fixture a value in `canaries`, with a word of 12 characters or more that is nowhere else."
            )
        shown = [Shown("the repr of its settings", f"{settings!r} {settings}")]
        with logged() as lines:
            shown += await _everything_shown(trial, canaries)
        shown.append(Shown("its log", "\n".join(lines)))
        for word, variable in words.items():
            encoded = base64.b64encode(word.encode()).decode().rstrip("=")
            for what, text in shown:
                require(
                    word not in text and encoded not in text,
                    f"The value of {variable} is in {what}. Keep it in a SecretStr until it is sent, and out "
                    "of every name, label, log line, repr and error.",
                )


async def _everything_shown(trial: Trial, canaries: Mapping[str, str]) -> Sequence[Shown]:
    """Use a transport with secrets, and return what it shows of itself."""
    shown: list[Shown] = []
    await trial.publish()
    async with trial.watching(**canaries) as watching:
        transport = watching.transport
        endpoint = await only(watching)
        route = await reach(trial, transport, endpoint)
        shown += [
            Shown("the repr of the transport", repr(transport)),
            Shown("an endpoint", f"{endpoint!r} {endpoint.model_dump_json()}"),
            Shown("the repr of a route", repr(route)),
            Shown("`invitation` or `vouching`", f"{transport.invitation} {transport.vouching}"),
        ]
        with suppress(NotImplementedError):
            async with trial.publisher.broken():
                shown += await _shown_while_broken(trial, canaries)
                with anyio.move_on_after(_LOOK_SECONDS):
                    await watching.ended.wait()
        shown += [
            Shown("`rejected()`", repr(transport.rejected())),
            Shown("an error", f"{watching.failure!r} {watching.failure}"),
        ]
    announcing = trial.plugin.announcing
    if announcing is not None and isinstance(transport, Announcer):
        shown += await _shown_while_announcing(trial, announcing, canaries)
    return shown


async def _shown_while_broken(trial: Trial, canaries: Mapping[str, str]) -> Sequence[Shown]:
    async with trial.opened(**canaries) as transport:
        failure = None
        try:
            await transport.discover()
        except Exception as error:
            failure = error
        return [
            Shown("an error", f"{failure!r} {failure}"),
            Shown("`rejected()`", repr(transport.rejected())),
        ]


async def _shown_while_announcing(
    trial: Trial, announcing: Callable[[Any], Announcing], canaries: Mapping[str, str]
) -> Sequence[Shown]:
    settings = await trial.under_test.read_settings(**{**trial.under_test.announcing, **canaries})
    shown = [Shown("what `announcing` says", repr(announcing(settings)))]
    async with trial.instance(**canaries) as instance, trial.announced(instance, **canaries) as announcement:
        await announcement.stop()
        shown.append(Shown("an error", f"{announcement.failure!r} {announcement.failure}"))
    return shown
