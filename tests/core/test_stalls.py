"""A transport that blocks the event loop is named: where it is stuck, and which package brings it."""

import contextlib
import dataclasses
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anyio
import pytest

from opencode_mcp import Endpoint, Settings, Transport, TransportPlugin
from opencode_mcp.fleet import stalls
from opencode_mcp.fleet.stalls import Stalls
from support.fleets import NoSettings

pytestmark = pytest.mark.anyio


class Blocking(Transport):
    async def discover(self) -> Sequence[Endpoint]:
        threading.Event().wait(0)
        return []


@contextlib.asynccontextmanager
async def open_blocking(settings: Settings) -> AsyncGenerator[Transport]:
    yield Blocking()


PLUGIN = TransportPlugin[Any](
    name="blocking", summary="", settings=NoSettings, open=open_blocking, package="opencode-mcp-blocking 1.0"
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "_BEAT_SECONDS", 0.02)


def blocked(until: threading.Event) -> None:
    assert until.wait(10)


async def held_up(caplog: pytest.LogCaptureFixture, plugin: TransportPlugin[Any]) -> list[str]:
    """Block the event loop until that is logged; return what was."""
    told = threading.Event()
    caplog.handler.addFilter(lambda record: told.set() is None)
    async with anyio.create_task_group() as group:
        group.start_soon(Stalls([plugin]).watch)
        await anyio.sleep(0.1)  # it turns, which is no stall
        assert not told.is_set()
        blocked(told)
        group.cancel_scope.cancel()
    return [record.getMessage() for record in caplog.records]


async def test_who_holds_up_the_event_loop_is_named_once(caplog: pytest.LogCaptureFixture):
    [line] = await held_up(caplog, PLUGIN)
    assert "Transport opencode-mcp-blocking 1.0 holds it up: update that package" in line
    assert f"{__file__}:" in line
    assert ", blocked)" in line


async def test_where_no_plugin_is_stuck_none_is_blamed(caplog: pytest.LogCaptureFixture):
    elsewhere = dataclasses.replace(PLUGIN, open=contextlib.nullcontext)
    [line] = await held_up(caplog, elsewhere)
    assert "It is held up" in line
    assert "blocking 1.0" not in line


async def test_its_thread_ends_with_it():
    before = threading.active_count()
    async with anyio.create_task_group() as group:
        group.start_soon(Stalls([]).watch)
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    with anyio.fail_after(10):
        while threading.active_count() > before:
            await anyio.sleep(0.01)
