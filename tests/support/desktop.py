"""A desktop that takes notifications: a private D-Bus session, and the service that desktops have on it."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, NamedTuple

import anyio
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusDict, DBusInt32, DBusSignature, DBusStr, DBusUInt32
from dbus_fast.service import ServiceInterface, dbus_method

from support.require import skip_or_fail

_SERVICE = "org.freedesktop.Notifications"
_START_SECONDS = 15
_Strings = Annotated[list[str], DBusSignature("as")]
_FourStrings = Annotated[tuple[str, str, str, str], DBusSignature("ssss")]
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:dir={folder}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""  # nothing of this machine is started by it


class Shown(NamedTuple):
    """A notification as it arrived."""

    app: str
    title: str
    text: str


class Desktop(ServiceInterface):
    """The service `org.freedesktop.Notifications`, version 1.2 of its specification.

    Attributes:
        address: For `DBUS_SESSION_BUS_ADDRESS`.
        shown: The notifications that arrived, in order.
    """

    def __init__(self, address: str, bus: MessageBus) -> None:
        super().__init__(_SERVICE)
        self.address = address
        self.shown: list[Shown] = []
        self._bus = bus

    async def start(self) -> None:
        """Take notifications."""
        self._bus.export("/org/freedesktop/Notifications", self)
        await self._bus.request_name(_SERVICE)

    async def close(self) -> None:
        """End the session, as logging out does."""
        self._bus.disconnect()
        await self._bus.wait_for_disconnect()

    @dbus_method()
    def Notify(  # noqa: N802
        self,
        app_name: DBusStr,
        replaces_id: DBusUInt32,
        app_icon: DBusStr,
        summary: DBusStr,
        body: DBusStr,
        actions: _Strings,
        hints: DBusDict,
        expire_timeout: DBusInt32,
    ) -> DBusUInt32:
        self.shown.append(Shown(app_name, summary, body))
        return len(self.shown)

    @dbus_method()
    def GetCapabilities(self) -> _Strings:  # noqa: N802
        return ["body", "body-markup"]

    @dbus_method()
    def GetServerInformation(self) -> _FourStrings:  # noqa: N802
        return ("a test", "opencode-mcp", "1", "1.2")


@contextlib.asynccontextmanager
async def desktop() -> AsyncGenerator[Desktop]:
    """Run a D-Bus session with a desktop on it."""
    program = shutil.which("dbus-daemon")
    if program is None:
        skip_or_fail("dbus-daemon is needed: apt-get install dbus-daemon")
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket is short
        config = Path(folder, "bus.conf")
        config.write_text(_BUS.format(folder=folder))
        arguments = (program, f"--config-file={config}", "--nofork", "--print-address")
        async with await anyio.open_process(arguments, stderr=subprocess.DEVNULL) as daemon:
            try:
                assert daemon.stdout
                with anyio.fail_after(_START_SECONDS):
                    address = (await daemon.stdout.receive()).decode().strip()
                    bus = await MessageBus(bus_address=address).connect()
                    served = Desktop(address, bus)
                    await served.start()
                yield served
                with anyio.fail_after(_START_SECONDS):
                    await served.close()
            finally:
                daemon.kill()
