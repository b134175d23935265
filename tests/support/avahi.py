"""A real avahi-daemon on a host of a test LAN, with a D-Bus of its own; the machine's are left alone."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from support.lan import Node, end, wait_for
from support.require import skip_or_fail

_START_SECONDS = 15
_PUBLISH_SECONDS = 10
_BROWSE_SECONDS = 20
_PROGRAMS = {
    "dbus-daemon": "dbus-daemon",
    "avahi-daemon": "avahi-daemon",
    "avahi-browse": "avahi-utils",
    "avahi-publish": "avahi-utils",
}
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:abstract={name}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
_DAEMON = """[server]
host-name={name}
use-ipv4=yes
use-ipv6=yes
allow-interfaces={interface}
[wide-area]
enable-wide-area=no
[publish]
publish-hinfo=no
publish-workstation=no
"""
# avahi-daemon has its directories compiled in, so it gets its own; the machine's services stay out
_PRIVATELY = """
own() { mount -t tmpfs tmpfs "$1"; }
set -e
if [ -d /run/avahi-daemon ]; then own /run/avahi-daemon; else own /run; mkdir /run/avahi-daemon; fi
if [ -d /etc/avahi/services ]; then own /etc/avahi/services; fi
if [ -f /etc/avahi/hosts ]; then mount --bind /dev/null /etc/avahi/hosts; fi
exec "$@"
"""


class Service(NamedTuple):
    """A service as avahi has resolved it, by one of IPv4 and IPv6.

    Attributes:
        name: The instance's name.
        service_type: Such as `_http._tcp`.
        host: The host it says it is on, such as `h1.local`.
        address: One of the host's addresses.
        port: Its port.
        txt: The strings of its TXT record, in no certain order.
        protocol: `IPv4` or `IPv6`: how it was found.
    """

    name: str
    service_type: str
    host: str
    address: str
    port: int
    txt: tuple[str, ...]
    protocol: str


class Avahi:
    """A running avahi-daemon.

    Attributes:
        environment: What lets D-Bus clients on the host find it.
    """

    def __init__(self, host: Node, home: Path, environment: dict[str, str]) -> None:
        self._host = host
        self._home = home
        self._published = 0
        self.environment = environment

    @property
    def log(self) -> str:
        """What the daemon has written so far."""
        return _text(self._home / "daemon.log")

    def publish(self, name: str, service_type: str, port: int, *txt: str) -> subprocess.Popen[bytes]:
        """Publish a service until the process is ended; returns when avahi has announced it.

        Args:
            name: The instance's name; avahi may choose another if it is taken.
            service_type: Such as `_http._tcp`.
            port: Its port.
            txt: The strings of its TXT record.
        """
        self._published += 1
        log = self._home / f"publish-{self._published}.log"
        words = ["avahi-publish", "-s", name, service_type, str(port), *txt]
        with log.open("wb") as output:
            process = self._host.popen(*words, env=self.environment, stdout=output, stderr=output)
        try:
            _logged(process, log, "Established under name", _PUBLISH_SECONDS)
        except BaseException:
            end(process)
            raise
        return process

    def browse(self, service_type: str) -> list[Service]:
        """Return what avahi finds and can resolve now; takes a second or two.

        Args:
            service_type: Such as `_http._tcp`.
        """
        words = ["avahi-browse", "--resolve", "--parsable", "--terminate", "--no-db-lookup", service_type]
        done = self._host.run(*words, env=self.environment, timeout=_BROWSE_SECONDS)
        return [_service(line) for line in done.stdout.splitlines() if line.startswith("=")]


@contextlib.contextmanager
def running_avahi(host: Node) -> Generator[Avahi]:
    """Run avahi-daemon on a host until the block ends; skip or fail the test if it is not installed."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            skip_or_fail(f"`{program}` is missing: install {package}")
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="avahi-")))
        bus_name = (
            f"{home.name}-bus"  # an abstract socket: it belongs to the network namespace, and leaves no file
        )
        environment = {
            **os.environ,
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:abstract={bus_name}",
            "LC_ALL": "C.UTF-8",
        }
        (home / "bus.conf").write_text(_BUS.format(name=bus_name))
        (home / "daemon.conf").write_text(_DAEMON.format(name=host.name, interface=host.interface))

        def start(log: Path, *words: str) -> subprocess.Popen[bytes]:
            with log.open("wb") as output:
                process = host.popen(*words, env=environment, stdout=output, stderr=output)
            stack.callback(end, process)
            return process

        bus_log = home / "bus.log"
        bus = start(
            bus_log,
            "dbus-daemon",
            "--nofork",
            "--nopidfile",
            "--print-address",
            f"--config-file={home / 'bus.conf'}",
        )
        _logged(bus, bus_log, bus_name, _START_SECONDS)
        daemon = start(
            home / "daemon.log",
            *("unshare", "--mount", "sh", "-c", _PRIVATELY, "sh"),
            *(
                "avahi-daemon",
                "--no-drop-root",
                "--no-chroot",
                "--no-rlimits",
                "-f",
                str(home / "daemon.conf"),
            ),
        )
        _logged(daemon, home / "daemon.log", "Server startup complete", _START_SECONDS)
        yield Avahi(host, home, environment)


def _logged(process: subprocess.Popen[bytes], log: Path, words: str, seconds: float) -> None:
    """Wait until a process has written something."""
    command = process.args[-1] if isinstance(process.args, list) else process.args

    def written() -> bool:
        if words in _text(log):
            return True
        if process.poll() is not None:
            raise RuntimeError(f"`{command}` ended with {process.returncode}: {_text(log)[-2000:]}")
        return False

    wait_for(written, seconds, f"`{command}` writes `{words}`")


def _text(log: Path) -> str:
    return log.read_text(errors="replace")


def _service(line: str) -> Service:
    """Read a line of `avahi-browse --parsable --resolve`."""
    _, _, protocol, name, service_type, _, host, address, port, txt = line.split(";", 9)
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', txt)
    return Service(
        _unescaped(name), service_type, host, address, int(port), tuple(map(_unescaped, strings)), protocol
    )


def _unescaped(text: str) -> str:
    r"""Undo avahi's escapes: `\032` (decimal, a byte) and `\.`."""
    raw = re.sub(
        rb"\\(\d{3}|.)",
        lambda found: bytes([int(found[1])]) if found[1].isdigit() and len(found[1]) == 3 else found[1],
        text.encode(),
    )
    return raw.decode(errors="replace")
