"""What every transport has to do, as the suite for third parties checks it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from local_relay.relay_parts import register
from opencode_mcp.testing import Publisher, TransportSuite, TransportUnderTest

pytestmark = pytest.mark.slow  # all together


class RegistrationFiles(Publisher):
    """Writes registration files, which say a port of this machine and no more."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def publish(self, url: str, *, key: str = "one", name: str = "one") -> None:
        place = urlsplit(url)
        port = place.port  # raises ValueError, too
        if url != f"http://127.0.0.1:{port}":
            raise ValueError("A registration says a port, and nothing else of a URL.")
        register(self._directory, key, id=key, name=name, port=port, localPort=port)

    async def withdraw(self, key: str = "one") -> None:
        (self._directory / f"{key}.json").unlink()

    @asynccontextmanager
    async def broken(self) -> AsyncGenerator[None]:
        """Let everybody write there: then it is not read."""
        self._directory.chmod(0o777)
        yield
        self._directory.chmod(0o700)


class TestLocalRelay(TransportSuite):
    @pytest.fixture
    def transport(self, registry: Path) -> TransportUnderTest:
        return TransportUnderTest(
            "local-relay",
            {"RELAY_REGISTRY_DIR": str(registry)},
            canaries={"RELAY_SSH_CMD": "/bin/false canary-6f1f7a5c9d3e"},  # it fails at once
        )

    @pytest.fixture
    def publisher(self, registry: Path) -> Publisher:
        return RegistrationFiles(registry)

    @property
    def watches_natively(self) -> bool:
        return True

    @property
    def announces(self) -> bool:
        return True
