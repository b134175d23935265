"""What the tests of the doctor share: transports that are installed for a test, and a look at a report."""

import json
import sys
import threading
from collections.abc import Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from opencode_mcp.doctor import EndpointReport, Patience, Report, State, Step, TransportReport, examine
from opencode_mcp.testing import FakeOpenCode
from support.distributions import Site

QUICK = Patience(route=1.0, look=1.0, complete=1.0, blocked=3.0, stalled=8.0)
"""Waits that are short, and long enough for a busy machine where something has to come of them."""

LISTED = """
import json
import queue
from contextlib import asynccontextmanager

import anyio
from pydantic import SecretStr

from opencode_mcp import (
    Endpoint, Rejection, Route, Settings, Transport, TransportError, TransportPlugin, hookimpl,
    opencode_auth, variable
)

RELEASED = queue.SimpleQueue()  # whose get blocks


class ListedSettings(Settings):
    endpoints: str = variable("LISTED_ENDPOINTS", "[]", takes="a list in JSON", about="What it finds.")
    many: int = variable("LISTED_MANY", 1, takes="a whole number", about="How many.")
    token: SecretStr | None = variable("LISTED_TOKEN", None, takes="a token", about="…", min_length=8)
    login: str = variable("LISTED_PASSWORD", "", takes="a password", about="Not declared as such.")


class Listed(Transport):
    invitation = "Put one on the list."
    vouching = "Say that it is yours."

    def __init__(self, settings):
        self.settings = settings

    async def listed(self):
        return [Endpoint.model_validate(one) for one in json.loads(self.settings.endpoints)]

    discover = listed

    BODY


@asynccontextmanager
async def opened(settings):
    yield Listed(settings)


MORE


@hookimpl
def opencode_mcp_transports():
    described = {"name": "NAME", "summary": "…", "settings": ListedSettings, "open": opened, GIVEN}
    return [TransportPlugin(**described)]
"""
"""A transport that finds what its settings say: with more methods, more code, or more in its descriptor."""


def install_listed(site: Site, body: str = "", more: str = "", given: str = "", name: str = "listed") -> None:
    """Install the transport as the distribution `dist-<name>`.

    Args:
        site: Where.
        body: Further methods.
        more: Further code, between the class and the hook.
        given: What the descriptor holds besides, or instead, as the inside of a dictionary.
        name: What it is called, and its module.
    """
    source = LISTED.replace("BODY", body.strip().replace("\n", "\n    ")).replace("MORE", more)
    source = source.replace("GIVEN", given).replace("NAME", name)
    site.install(f"dist-{name}", transports={name: name}, modules={name: source})


def listed(*endpoints: FakeOpenCode | str, **fields: Any) -> str:
    """Return what LISTED_ENDPOINTS takes: servers, or URLs, called `one`, `two` and so on."""
    names = ["one", "two", "three", "four"] + [f"number-{number}" for number in range(5, 1000)]
    urls = [one if isinstance(one, str) else one.url for one in endpoints]
    return json.dumps(
        [
            {"id": name, "name": name, "url": url, "vouched": True, **fields}
            for name, url in zip(names, urls, strict=False)
        ]
    )


async def examined(*transports: str, patience: Patience = QUICK) -> Report:
    """Examine transports while the event loop goes on, half a minute at most."""
    with anyio.fail_after(30):
        return await anyio.to_thread.run_sync(
            partial(examine, transports or ["listed"], patience=patience), abandon_on_cancel=True
        )


def states(steps: Iterable[Step]) -> dict[str, str]:
    return {step.name: step.state.value for step in steps}


def only_transport(report: Report) -> TransportReport:
    (transport,) = report.transports
    return transport


def only_endpoint(report: Report) -> EndpointReport:
    (endpoint,) = report.endpoints
    return endpoint


def broken(steps: Iterable[Step], state: State = State.FAILED) -> Step:
    """Return the one step that has failed, or warns; with something to do about it."""
    found = [step for step in steps if step.state in (State.FAILED, State.WARNING)]
    assert [step.state for step in found] == [state], found
    return found[0]


def prepared_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Site]:
    """Yield a place to install distributions in, and a bare environment; for a fixture."""
    for name in ("OPENCODE_SERVER_USERNAME", "OPENCODE_SERVER_PASSWORD", "TRANSPORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HEALTH_CHECK_TIMEOUT_MS", "1000")
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(site.path)
    yield site
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(site.path):
            if (released := getattr(module, "RELEASED", None)) is not None:
                released.put(None)
            del sys.modules[name]
    for thread in threading.enumerate():
        if thread.name.startswith("examines "):
            thread.join(20)
            assert not thread.is_alive()
