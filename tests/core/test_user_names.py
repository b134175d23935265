"""One user name is set for the whole fleet, and OpenCode 2.x knows only its own."""

import httpx2
import pytest

from opencode_mcp import Route, opencode_auth
from opencode_mcp.errors import CredentialsError
from opencode_mcp.opencode.detect import detect
from opencode_mcp.opencode.http import Http, warm_up
from opencode_mcp.testing import FakeOpenCode

pytestmark = pytest.mark.anyio

PASSWORD = "s3cret"


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    warm_up()


def to(fake: FakeOpenCode, auth: httpx2.Auth) -> Http:
    return Http(Route(base_url=fake.url), seconds=5, vouched=True, auth=auth)


async def test_one_that_refuses_the_name_is_asked_with_the_usual_one_and_that_is_remembered() -> None:
    fake = FakeOpenCode(generation=2, password=PASSWORD)
    async with fake.serve(), to(fake, opencode_auth(PASSWORD, "alice")) as http:
        assert (await detect(http)).version == fake.version
        heard = len(fake.requests)
        await http.get("/api/info")
        assert len(fake.requests) == heard + 1


async def test_one_that_knows_the_name_is_asked_with_it_alone() -> None:
    fake = FakeOpenCode(username="alice", password=PASSWORD)
    async with fake.serve(), to(fake, opencode_auth(PASSWORD, "alice")) as http:
        await http.get("/global/health")
        assert len(fake.requests) == 2  # the first without a password


async def test_a_wrong_password_is_refused_under_both_names_and_then_told() -> None:
    fake = FakeOpenCode(generation=2, password=PASSWORD)
    async with fake.serve(), to(fake, opencode_auth("wrong", "alice")) as http:
        with pytest.raises(CredentialsError, match="OPENCODE_SERVER_USERNAME and"):
            await http.get("/api/info")
        assert len(fake.requests) == 3


async def test_credentials_of_a_plugin_are_sent_as_they_are() -> None:
    fake = FakeOpenCode(generation=2, password=PASSWORD)
    async with fake.serve(), to(fake, httpx2.BasicAuth("alice", PASSWORD)) as http:
        with pytest.raises(CredentialsError):
            await http.get("/api/info")
        assert len(fake.requests) == 2
