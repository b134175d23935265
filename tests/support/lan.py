"""A throw-away LAN: hosts in network namespaces on one virtual switch, nothing of it in the machine's own.

The namespaces have no names: a keeper process, which is this file run as a script, holds them open. It waits
for the end of its standard input, so it also goes when the test run is killed, and first ends what still
lives in them. Hence nothing stays: no entry or mount in /run/netns, no interface, no process.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, TypeVar

INTERFACE = "eth0"
_BRIDGE = "br0"
_MULTICAST = "224.0.0.0/4"

_COMMAND_SECONDS = 20
_SETTLE_SECONDS = 5  # until an interface is what it was told to be; the kernel may take 1 s to tell
_END_SECONDS = 3  # between TERM and KILL
_SWEEP_SECONDS = 1  # the same, for what nobody registered
_POLL_SECONDS = 0.01

_CLONE_NEWUTS = 0x04000000
_CLONE_NEWNET = 0x40000000

_SWITCH_SETTINGS = {
    # bridged frames must not pass netfilter: with Docker on the machine it would drop them
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
    "net/bridge/bridge-nf-call-arptables": "0",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
}
_HOST_SETTINGS = {
    # IPv4 settings are inherited from the machine, so none is taken for granted
    "net/ipv4/conf/all/promote_secondaries": "1",
    "net/ipv4/conf/default/promote_secondaries": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/ip_forward": "0",
    **{
        f"net/ipv6/conf/{which}/{key}": value
        for which in ("all", "default")
        for key, value in {
            "disable_ipv6": "0",
            "accept_dad": "0",  # a link-local address is usable at once
            "accept_ra": "0",
            "router_solicitations": "0",
        }.items()
    },
    "net/ipv6/conf/default/addr_gen_mode": "0",
}

_T = TypeVar("_T")


class _Spaces(NamedTuple):
    """What the keeper holds for one node: paths for `nsenter`."""

    net: str
    uts: str


class Node:
    """A machine of the LAN that can run commands.

    Attributes:
        name: Its host name, such as `h1`.
        namespace: A path to its network namespace, good as long as the LAN is.
        interface: The interface that sees the LAN's traffic.
    """

    def __init__(self, name: str, spaces: _Spaces, interface: str) -> None:
        self.name = name
        self.namespace = spaces.net
        self.interface = interface
        self._spaces = spaces
        self._processes: list[subprocess.Popen[Any]] = []

    def wrap(self, *command: str | os.PathLike[str]) -> list[str]:
        """Return the command line that runs `command` here; it execs, so the process is the command's own."""
        words = [os.fspath(word) for word in command]
        return ["nsenter", f"--net={self._spaces.net}", f"--uts={self._spaces.uts}", "--", *words]

    def run(
        self,
        *command: str | os.PathLike[str],
        timeout: float = _COMMAND_SECONDS,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        Args:
            command: Its words.
            timeout: Seconds it may take, else `subprocess.TimeoutExpired`.
            env: All of its environment; None for ours.
            check: Whether another exit code than 0 is an error, which then tells what it wrote.
            input: What it reads from its standard input; None for nothing.
        """
        done = subprocess.run(
            self.wrap(*command),
            input=input or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=env,
            check=False,
        )
        if check and done.returncode != 0:
            words = " ".join(os.fspath(word) for word in command)
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise RuntimeError(f"{self.name}: `{words}` ended with {done.returncode}: {said}")
        return done

    def popen(self, *command: str | os.PathLike[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command that goes on; it ends when the LAN closes, if `end` was not called before.

        Args:
            command: Its words.
            options: As for `subprocess.Popen`. If not given, it leads a process group of its own, reads
                nothing, and what it writes is thrown away.
        """
        usual: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        usual["start_new_session"] = True
        process: subprocess.Popen[Any] = subprocess.Popen(self.wrap(*command), **{**usual, **options})
        self._processes.append(process)
        return process


class Host(Node):
    """A host on the LAN; changes of its network are in force when the method returns."""

    def __init__(self, name: str, spaces: _Spaces, switch: Node, port: str) -> None:
        super().__init__(name, spaces, INTERFACE)
        self._switch = switch
        self._port = port

    @property
    def addresses(self) -> list[str]:
        """Its IPv4 addresses now."""
        return self._addresses("-4", "global")

    @property
    def address(self) -> str:
        """Its IPv4 address now.

        Raises:
            LookupError: It has none.
        """
        return self._only(self.addresses, "IPv4 address")

    @property
    def link_local(self) -> str:
        """Its IPv6 link-local address now, without a scope: for that, append `%` and `interface`.

        Raises:
            LookupError: It has none.
        """
        return self._only(self._addresses("-6", "link"), "link-local address")

    def pull(self) -> None:
        """Take the cable out: the carrier is lost, the addresses stay."""
        self._set_port("down")
        self._wait(lambda flags: "UP" not in flags or "NO-CARRIER" in flags, "lost its carrier")

    def plug(self) -> None:
        """Put the cable in, and switch the interface on if it was not yet."""
        self._set_port("up")
        self.run("ip", "link", "set", INTERFACE, "up", "multicast", "on")
        self._wait(lambda flags: "LOWER_UP" in flags and "NO-CARRIER" not in flags, "got a carrier")
        self._route_multicast()
        self.settle()

    def drop(self) -> None:
        """Lose all of its traffic without a sign: the carrier stays, as for a host that hangs."""
        self._set_port("nomaster")

    def undrop(self) -> None:
        """Let its traffic through again."""
        self._set_port("master", _BRIDGE)

    def set_address(self, address: str) -> None:
        """Replace its IPv4 addresses by one, with a prefix of 24 bits, as a DHCP server might."""
        self.add_address(address)
        for old in self.addresses:
            if old != address:
                self.run("ip", "address", "del", f"{old}/24", "dev", INTERFACE)
        self._route_multicast()  # went if the kernel has seen the interface without an address

    def add_address(self, address: str) -> None:
        """Give it a further IPv4 address, with a prefix of 24 bits; harmless if it has it."""
        self.run("ip", "address", "replace", f"{address}/24", "brd", "+", "dev", INTERFACE)

    def settle(self) -> None:
        """Wait until its link-local address is usable; that needs the interface up."""

        def usable() -> bool:
            return bool(self._addresses("-6", "link", "-tentative"))

        wait_for(usable, _SETTLE_SECONDS, f"{self.name} has a usable IPv6 link-local address")

    def _route_multicast(self) -> None:
        if "UP" in self._flags():  # else the kernel takes no route; `plug` comes back to it
            self.run("ip", "route", "replace", _MULTICAST, "dev", INTERFACE)

    def _set_port(self, *words: str) -> None:
        self._switch.run("ip", "link", "set", self._port, *words)

    def _wait(self, condition: Callable[[Sequence[str]], bool], what: str) -> None:
        wait_for(lambda: condition(self._flags()), _SETTLE_SECONDS, f"{self.name} has {what}")

    def _flags(self) -> list[str]:
        shown = json.loads(self.run("ip", "-json", "link", "show", "dev", INTERFACE).stdout)
        return shown[0]["flags"]

    def _addresses(self, family: str, scope: str, *more: str) -> list[str]:
        words = ("ip", family, "-json", "address", "show", "dev", INTERFACE, "scope", scope, *more)
        shown = json.loads(self.run(*words).stdout)
        return [each["local"] for link in shown for each in link.get("addr_info", ())]

    def _only(self, found: Sequence[str], what: str) -> str:
        if not found:
            raise LookupError(f"{self.name} has no {what}")
        return found[0]


class Lan:
    """A LAN while it is open.

    Attributes:
        hosts: Its hosts, `h1` first.
        switch: What joins them; to look at the traffic of all.
    """

    def __init__(self, hosts: Sequence[Host], switch: Node) -> None:
        self.hosts = hosts
        self.switch = switch

    def host(self, number: int) -> Host:
        """Return a host by its number, which begins at 1."""
        return self.hosts[number - 1]


@contextlib.contextmanager
def lan(hosts: int = 2, *, unplugged: Sequence[int] = (), network: str = "10.77.0") -> Generator[Lan]:
    """Have a LAN until the block ends; skip or fail the test if this machine cannot have one.

    Any number of them may be open side by side: they do not see each other, even with equal addresses.

    Args:
        hosts: How many hosts, up to 200.
        unplugged: The numbers of hosts that begin with their interface off and without an IPv4 address;
            `plug` and `set_address` bring them to life.
        network: The first three numbers of the hosts' IPv4 addresses; the fourth is the number of the host.
    """
    _require_tools()
    with contextlib.ExitStack() as stack:
        switch_spaces, *host_spaces = stack.enter_context(_kept(hosts))
        switch = Node("switch", switch_spaces, _BRIDGE)
        made = [
            Host(f"h{number}", spaces, switch, f"p{number}")
            for number, spaces in enumerate(host_spaces, start=1)
        ]
        stack.callback(lambda: end(*(process for node in (switch, *made) for process in node._processes)))
        _cable(switch, made)
        for number, host in enumerate(made, start=1):
            if number not in unplugged:
                _configure(host, f"{network}.{number}")
        switch.run("ip", "-batch", "-", input=_lines(_ports_up(made, unplugged)))
        for number, host in enumerate(made, start=1):
            if number not in unplugged:
                host.settle()
        yield Lan(made, switch)


def end(*processes: subprocess.Popen[Any], seconds: float = _END_SECONDS) -> None:
    """End processes and the groups they lead: TERM, then KILL; and close the pipes to them.

    Args:
        processes: The processes; harmless for one that has ended.
        seconds: What they have, together, after the TERM.
    """
    running = [process for process in processes if process.poll() is None]
    for process in running:
        _signal(process, signal.SIGTERM)
        _signal(process, signal.SIGCONT)  # a stopped one would not notice
    deadline = time.monotonic() + seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
    for process in running:
        if process.poll() is None:
            _signal(process, signal.SIGKILL)
            process.wait(_COMMAND_SECONDS)
    for process in processes:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not flushed finds nobody
                    pipe.close()


def wait_for(condition: Callable[[], _T], seconds: float, what: str) -> _T:
    """Ask again and again until the answer is true, and return it.

    Args:
        condition: What to ask.
        seconds: How long at most.
        what: What should come true, for the `TimeoutError`.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not within {seconds} s: {what}")
        time.sleep(_POLL_SECONDS)


def _signal(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """Signal a process that is not reaped yet, so that its number is still its own."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def _require_tools() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        _skip("A test LAN needs Linux and root, to make network namespaces")
    for tool, package in {"ip": "iproute2", "nsenter": "util-linux"}.items():
        if shutil.which(tool) is None:
            _skip(f"A test LAN needs `{tool}`: install {package}")


def _skip(reason: str) -> NoReturn:
    from support.require import skip_or_fail

    skip_or_fail(reason)


@contextlib.contextmanager
def _kept(hosts: int) -> Generator[list[_Spaces]]:
    """Have a keeper of namespaces; the first are the switch's."""
    keeper = subprocess.Popen(
        # a session of its own: it must outlive Ctrl-C, for there is something to clear up
        [sys.executable, "-I", "-S", __file__, str(hosts)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    said = ""
    try:
        said = keeper.stdout.readline()
        if said.startswith("["):
            yield [
                _Spaces(f"/proc/{keeper.pid}/fd/{net}", f"/proc/{keeper.pid}/fd/{uts}")
                for net, uts in json.loads(said)
            ]
    finally:
        keeper.stdin.close()
        rest = _last_words(keeper, keeper.stdout)
    if not said.startswith("["):
        *_, why = ["its keeper said nothing", *f"{said}{rest}".splitlines()]
        _skip(f"Network namespaces cannot be made here: {why}")
    if keeper.returncode != 0:
        raise RuntimeError(f"The test LAN was not cleared up: {rest}")


def _last_words(keeper: subprocess.Popen[str], stdout: IO[str]) -> str:
    try:
        keeper.wait(_COMMAND_SECONDS)
        return stdout.read().strip()
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
        return "its keeper hung"
    finally:
        stdout.close()


def _lines(commands: Sequence[Sequence[str]]) -> str:
    return "".join(f"{' '.join(words)}\n" for words in commands)


def _cable(switch: Node, hosts: Sequence[Host]) -> None:
    """Make the switch, and a cable from it into each host; skip if the kernel has no such devices."""
    bridge = ["type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"]
    commands = [
        ["link", "add", _BRIDGE, *bridge],
        ["link", "set", "lo", "up"],
        ["link", "set", _BRIDGE, "up"],
    ]
    for number, host in enumerate(hosts, start=1):
        peer = [INTERFACE, "address", f"02:77:00:00:00:{number:02x}", "netns", host.namespace]
        commands.append(
            ["link", "add", f"p{number}", "master", _BRIDGE, "type", "veth", "peer", "name", *peer]
        )
    done = switch.run("ip", "-batch", "-", input=_lines(commands), check=False)
    if done.returncode != 0:
        _skip(f"This kernel makes no bridge or veth device: {' '.join(done.stderr.split())[:300]}")
    for host in hosts:
        host.run("ip", "link", "set", "lo", "up")


def _configure(host: Host, address: str) -> None:
    commands = [
        ["link", "set", INTERFACE, "up", "multicast", "on"],
        ["address", "add", f"{address}/24", "brd", "+", "dev", INTERFACE],
        ["route", "add", _MULTICAST, "dev", INTERFACE],
    ]
    host.run("ip", "-batch", "-", input=_lines(commands))


def _ports_up(hosts: Sequence[Host], unplugged: Sequence[int]) -> list[list[str]]:
    numbers = range(1, len(hosts) + 1)
    return [["link", "set", f"p{number}", "up"] for number in numbers if number not in unplugged]


# ----------------------------------------------------------------------
# The keeper. It runs alone, on the standard library.


def _keep(hosts: int) -> int:
    """Make the namespaces, tell their descriptors, and when the other side goes end who lives there."""
    home = _own_spaces()
    made: list[tuple[int, int]] = []
    for number in range(hosts + 1):
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWUTS)
        socket.sethostname(f"h{number}" if number else "switch")
        for key, value in (_HOST_SETTINGS if number else _SWITCH_SETTINGS).items():
            with contextlib.suppress(OSError):  # not in this kernel, or /proc/sys is for reading only
                Path("/proc/sys", key).write_text(value)
        made.append(_own_spaces())
    for descriptor, kind in zip(home, (_CLONE_NEWNET, _CLONE_NEWUTS), strict=True):
        _call("setns", descriptor, kind)
    print(json.dumps(made), flush=True)
    while os.read(0, 4096):
        pass
    spaces = {_identity(net) for net, _ in made}
    if not _sweep(spaces, signal.SIGTERM):
        return 0
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not _sweep(spaces), _SWEEP_SECONDS, "nobody is left")
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not _sweep(spaces, signal.SIGKILL), _END_SECONDS, "nobody is left")
        return 0
    print(f"Still there: {[pid for pid, _ in _inhabitants(spaces)]}", flush=True)
    return 1


def _own_spaces() -> tuple[int, int]:
    return os.open("/proc/self/ns/net", os.O_RDONLY), os.open("/proc/self/ns/uts", os.O_RDONLY)


def _call(function: str, *arguments: int) -> None:
    """Call libc; `os` has these functions from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _identity(file: int | str) -> tuple[int, int]:
    status = os.stat(file)  # noqa: PTH116 - a descriptor as well
    return status.st_dev, status.st_ino


def _inhabitants(spaces: set[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the processes in these network namespaces, each with a descriptor that stays its own."""
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are wanted
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError):  # has gone meanwhile, or is a zombie
            descriptor = os.pidfd_open(int(entry))
            try:
                if _identity(f"/proc/{entry}/ns/net") in spaces:
                    yield int(entry), descriptor
            finally:
                os.close(descriptor)


def _sweep(spaces: set[tuple[int, int]], number: int = 0) -> bool:
    """Signal whoever is in these namespaces, 0 for no signal; tell whether there was anybody."""
    found = False
    for _, descriptor in _inhabitants(spaces):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
            found = True
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hosts", type=int)
    sys.exit(_keep(parser.parse_args().hosts))
