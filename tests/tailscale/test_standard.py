"""What every transport has to do, as the suite for third parties checks it: beside fakes of tailscaled."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from opencode_mcp.testing import Publisher, TransportSuite, TransportUnderTest
from support.fake_tailscaled import FakeTailscaled, join
from tailscale import tailscale_parts as parts

pytestmark = pytest.mark.slow  # all together


class Box(Publisher):
    """Another machine of the tailnet, which announces instances as this project does."""

    def __init__(self, fake: FakeTailscaled) -> None:
        self._fake = fake
        self._peer = fake.add_peer("box", id="nbox")
        self._web = parts.announce(fake, self._peer, {})
        self._urls: dict[str, str] = {}
        self._names: dict[str, str] = {}

    async def publish(self, url: str, *, key: str = "one", name: str = "one") -> None:
        if not url.startswith("http://127.0.0.1:") or url.count("/") != 2 or not url[17:].isdecimal():
            raise ValueError("An index says no URLs: tailscaled proxies.")
        self._urls[key], self._names[key] = url, name
        self._tell()

    async def withdraw(self, key: str = "one") -> None:
        del self._urls[key], self._names[key]
        self._tell()

    @asynccontextmanager
    async def broken(self) -> AsyncGenerator[None]:
        self._fake.state = "Stopped"
        yield
        self._fake.state = "Running"

    def _tell(self) -> None:
        told: list[dict[str, Any]] = [parts.entry(key, name=name) for key, name in self._names.items()]
        self._web.configs.replace(parts.served(self._peer.name, self._urls, told), "", ())


class TestTailscale(TransportSuite):
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        parts.hurried(monkeypatch)

    @pytest.fixture
    async def gateway(self, tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
        """The tailscaled of the machine that looks."""
        async with FakeTailscaled(tmp_path / "gateway") as one:
            one.tun = False  # its loopback is ours
            yield one

    @pytest.fixture
    async def laptop(self, gateway: FakeTailscaled, tmp_path: Path) -> AsyncGenerator[FakeTailscaled]:
        """The tailscaled of the machine that announces."""
        async with FakeTailscaled(tmp_path / "laptop", name="laptop") as one:
            one.tun = False
            join(gateway, one)
            yield one

    @pytest.fixture
    async def transport(self, gateway: FakeTailscaled, laptop: FakeTailscaled) -> TransportUnderTest:
        return TransportUnderTest(
            "tailscale",
            {"TAILSCALE_SOCKET": str(gateway.socket), "TAILSCALE_PORTS": str(parts.NOWHERE)},
            announcing={"TAILSCALE_SOCKET": str(laptop.socket)},
        )

    @pytest.fixture
    async def publisher(self, gateway: FakeTailscaled) -> Publisher:
        return Box(gateway)

    @property
    def watches_natively(self) -> bool:
        return True

    @property
    def announces(self) -> bool:
        return True

    @property
    def expires(self) -> bool:
        return True
