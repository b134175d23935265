"""What all tests share: asyncio is the backend, since uvicorn and `mcp` run on it."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
