"""What is started, where it listens, and who may talk to it."""

import ipaddress
import os
import random
import secrets
import shutil
import socket
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from opencode_mcp.errors import StartError
from opencode_mcp.settings import ConnectSettings, CoreSettings
from opencode_mcp.text import clean_line
from opencode_mcp.transport import LOOPBACK

_PORTS = range(4096, 5096)
"""Below the ports that outgoing connections take for themselves."""
_OURS = ("--port", "--hostname")
_NOT_FOUND = 127
_PASSWORD = "OPENCODE_SERVER_PASSWORD"  # noqa: S105 - a name
_PASSWORD_2 = "OPENCODE_PASSWORD"  # noqa: S105 - what OpenCode 2.x reads first


def find_program(settings: ConnectSettings) -> list[str]:
    """Return the command that starts OpenCode, its program as a path.

    Raises:
        StartError: There is no such program.
    """
    first, *further = settings.command
    program = shutil.which(first)
    if program is None:
        shown = clean_line(first, 200)
        raise StartError(
            f"There is no program {shown!r} on PATH. Install OpenCode (https://opencode.ai), or set "
            "OPENCODE_MCP_COMMAND to the command that starts it.",
            _NOT_FOUND,
        )
    return [program, *further]


def check_passed_on(arguments: Iterable[str]) -> None:
    """Refuse what would make OpenCode listen elsewhere than where it is announced.

    Raises:
        StartError: Such an argument is among them.
    """
    for argument in arguments:
        if argument.partition("=")[0] in _OURS:
            raise StartError(
                f"{clean_line(argument, 80)} cannot be passed on: where OpenCode listens is announced, so it "
                "is chosen here. For a port of your own: opencode-connected --port N",
                2,
            )


def listening_address(wanted: Collection[str]) -> str:
    """Return the one address that serves all transports."""
    distinct = set(wanted) or {LOOPBACK}
    return distinct.pop() if len(distinct) == 1 else "0.0.0.0"  # noqa: S104 - a password is mandatory then


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a server that listens on `address`."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def local_url(address: str, port: int) -> str:
    """Return where a server that listens on `address` answers on this machine."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(address, address)  # noqa: S104 - not bound, but left
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announced_url(address: str, port: int) -> str:
    """Return the URL that says where it listens, for an announcement."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def free_port(address: str, wanted: int | None, taken: Collection[int]) -> int:
    """Return a port to listen on: the one that is wanted, else any that is free.

    Raises:
        StartError: It is taken, or all are.
    """
    candidates = random.sample(_PORTS, len(_PORTS)) if wanted is None else [wanted]
    for port in candidates:
        if port in taken and wanted is None:
            continue
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as trying:
            trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trying.bind((address, port))
            except OSError as error:
                if wanted is not None:
                    raise StartError(
                        f"Port {port} of {address} cannot be listened on: {error.strerror}. "
                        "Choose another with --port, or leave it out."
                    ) from None
                continue
            return port
    raise StartError(f"None of the ports {_PORTS.start} to {_PORTS.stop - 1} of {address} is free.")


def password_for(
    address: str, settings: ConnectSettings, state: Path, *, always: bool = False
) -> tuple[str | None, Path | None]:
    """Return the password, and the file that holds it if it was made up here.

    A server that the network can reach never goes without; the same password is used again each time.

    Args:
        address: Where it listens.
        settings: Which may say a password.
        state: Where one is kept that is made up.
        always: Whether it never goes without wherever it listens, as OpenCode 2.x.

    Raises:
        StartError: It cannot be kept.
    """
    if settings.server_password is not None:
        return settings.server_password.get_secret_value(), None
    if is_loopback(address) and not always:
        return None, None
    path = state / "password"
    try:
        return _kept(path), path
    except OSError as error:
        raise StartError(f"The password cannot be kept in {path}: {error.strerror}.") from None


def _kept(path: Path) -> str:
    """Return the password in the file, which appears with its content: others may start at the same time."""
    beside = path.with_name(f".{secrets.token_hex(8)}.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(f"{secrets.token_urlsafe(32)}\n")
        with suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    path.chmod(0o600)
    if not (known := path.read_text(encoding="utf-8").strip()):
        raise StartError(f"The file {path} is to hold a password, and is empty. Remove it.")
    return known


def known_password(settings: CoreSettings, state: Path) -> str | None:
    """Return the password that instances of this machine may have: the user's, or the one made up here."""
    if settings.server_password is not None:
        return settings.server_password.get_secret_value()
    try:
        return (state / "password").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def environment_for(
    password: str | None, secrets: Collection[str] = (), *, second: bool = False
) -> Mapping[str, str]:
    """Return the environment of OpenCode: ours without `secrets`, whose agent can run `env`.

    Args:
        password: What OpenCode is to ask for; None leaves it to the variable, if that is set.
        secrets: Variables that are not for it. The one of the password is, whoever else uses it.
        second: Whether it is OpenCode 2.x, which has a variable of its own.
    """
    passed_on = {name: value for name, value in os.environ.items() if name not in {*secrets} - {_PASSWORD}}
    if password is None:
        return passed_on
    return {**passed_on, _PASSWORD: password, **({_PASSWORD_2: password} if second else {})}
