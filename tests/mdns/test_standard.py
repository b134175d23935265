"""What every transport has to do, as the suite for third parties checks it: on loopback."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from ipaddress import ip_interface
from typing import Any
from urllib.parse import urlsplit

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from opencode_mcp.testing import Publisher, TransportSuite, TransportUnderTest, Trial
from opencode_mcp_mdns.network import Attached, Network

pytestmark = pytest.mark.slow

TYPE = "_opencode._tcp.local."
LOOPBACK = Network([Attached("lo", 1, ip_interface("127.0.0.1/8"))])


class Advertiser(Publisher):
    """Advertises with zeroconf alone, at an address that the transport does not take for this machine's."""

    host = "127.0.0.2"

    def __init__(self, zeroconf: AsyncZeroconf, monkeypatch: pytest.MonkeyPatch) -> None:
        self._zeroconf: Any = zeroconf
        self._monkeypatch = monkeypatch
        self._advertised: dict[str, AsyncServiceInfo] = {}

    async def publish(self, url: str, *, key: str = "one", name: str = "one") -> None:
        port = urlsplit(url).port
        if url != f"http://{self.host}:{port}":
            raise ValueError("An advertisement says an address and a port, and nothing else of a URL.")
        if len(f"name={name}".encode()) > 255:
            raise ValueError("RFC 6763, section 6.1: 255 bytes are the most of a TXT string.")
        info = AsyncServiceInfo(
            TYPE,
            f"{key}.{TYPE}",
            port=port,
            properties={"id": key, "name": name},
            server=f"{key}.local.",
            parsed_addresses=[self.host],
        )
        if key in self._advertised:
            await (await self._zeroconf.async_update_service(info))
        else:
            await (await self._zeroconf.async_register_service(info, cooperating_responders=True))
        self._advertised[key] = info

    async def withdraw(self, key: str = "one") -> None:
        await (await self._zeroconf.async_unregister_service(self._advertised.pop(key)))

    @asynccontextmanager
    async def broken(self) -> AsyncGenerator[None]:
        """Let nobody else use multicast DNS."""

        def refuse(**_: Any) -> None:
            raise OSError(98, "Address already in use")

        with self._monkeypatch.context() as patch:
            patch.setattr("opencode_mcp_mdns.session.AsyncZeroconf", refuse)
            yield


class TestMDns(TransportSuite):
    @pytest.fixture
    def transport(self, monkeypatch: pytest.MonkeyPatch) -> TransportUnderTest:
        monkeypatch.setattr("opencode_mcp_mdns.transport.network_reader", lambda _: lambda: LOOPBACK)
        monkeypatch.setattr("opencode_mcp_mdns.read_network", lambda _: LOOPBACK)
        monkeypatch.setattr("opencode_mcp_mdns.lookout._REVIEW_SECONDS", 0.2)
        return TransportUnderTest("mdns", {"MDNS_INTERFACES": "127.0.0.1"})

    @pytest.fixture
    async def publisher(self, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Publisher]:
        # Between repetitions: short for what appears, and long enough for the last goodbye to come after any
        # answer that zeroconf had still delayed, for up to a second.
        monkeypatch.setattr("zeroconf._core._REGISTER_TIME", 20)
        monkeypatch.setattr("zeroconf._core._UNREGISTER_TIME", 500)
        zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
        yield Advertiser(zeroconf, monkeypatch)
        await zeroconf.async_close()

    @pytest.mark.xfail(
        reason="Nobody knows who has yet to answer on a network, so what has answered within a second is "
        "published. Here that is nothing: what was multicast within the last second is not said again "
        "(RFC 6762, section 6).",
        strict=False,
    )
    async def test_the_first_set_is_complete(self, trial: Trial) -> None:
        await super().test_the_first_set_is_complete(trial)

    @property
    def watches_natively(self) -> bool:
        return True

    @property
    def announces(self) -> bool:
        return True

    @property
    def gone_within_seconds(self) -> float:
        """A goodbye counts after a second: RFC 6762, section 10.1."""
        return 10.0

    @property
    def rescan_seconds(self) -> float:
        """Asked more often, others keep silent about what they have just said (RFC 6762, section 6)."""
        return 5.0
