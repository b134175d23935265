"""Who may get the password of a server of this machine, however it is asked."""

import os
import sys
from pathlib import Path

import anyio.to_thread
import pytest

from opencode_mcp import Endpoint
from opencode_mcp.connect.known import known_at
from opencode_mcp.connect.sessions import _direct  # pyright: ignore[reportPrivateUsage]
from opencode_mcp.testing import FakeOpenCode
from support.services import register_fake

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="users have no ids there"),
]

URL = "http://127.0.0.1:4096"
US = os.geteuid()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("owner", "users"), [(None, {US, 0}), (US, {US, 0}), (4711, {US, 0, 4711})])
async def test_this_user_root_and_whose_it_is(owner: int | None, users: set[int]) -> None:
    assert (await anyio.to_thread.run_sync(known_at, URL, "pw", owner)).users == users
    async with _direct(Endpoint(id="a", name="a", url=URL), owner) as route:
        assert route.users == users


async def test_that_of_the_background_service_is_for_this_user_alone(state: Path) -> None:
    async with FakeOpenCode(generation=2).serve() as fake:
        register_fake(state, fake)
        known = await anyio.to_thread.run_sync(known_at, fake.url, "pw", 4711)
        assert (known.users, known.password) == ({US}, fake.password)
