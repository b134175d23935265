"""Why an ssh ended, in words for a person, by what it said."""

import re
from collections.abc import Callable, Iterable

from opencode_mcp import TransportError

FORWARDING_FAILED = re.compile(r"remote port forwarding failed|forwarding request failed", re.IGNORECASE)
UNKNOWN_OPTION = re.compile(
    r"(bad configuration|unknown|illegal|invalid|unrecogni[sz]ed|unsupported|unexpected|no such)\s+"
    r"(configuration )?(option|argument|parameter)",
    re.IGNORECASE,
)
NO_MULTIPLEXING = re.compile(
    UNKNOWN_OPTION.pattern + r"|control(path|master|persist|socket)|unix_listener", re.IGNORECASE
)

_BY_HAND = "Run it once by hand, with `true` as the command, to see what it asks"
_REASONS = {
    r"host key verification failed|identification has changed|host key is known": (
        "The relay's host key is unknown or has changed, and nobody is asked here: {line}. "
        f"{_BY_HAND}; accept the key only if you know it."
    ),
    r"permission denied|too many authentication failures|no supported authentication": (
        "The relay refused the login: {line}. It must work without a password being asked for: see to the "
        f"user, the key and the agent. {_BY_HAND}."
    ),
    r"could not resolve|name or service not known|nodename nor servname|no address associated": (
        "The relay's name is not known: {line}. See to its spelling and to your network."
    ),
    FORWARDING_FAILED.pattern: (
        "The relay does not let a port of it be forwarded: {line}. Its sshd needs AllowTcpForwarding `yes` "
        "or `remote` (and no narrow PermitListen), and the key no `restrict` or `no-port-forwarding`."
    ),
    r"session open refused|session request failed": (
        "The relay allows no further session over the connection that stands: {line}. Its sshd needs a "
        "larger MaxSessions; or set RELAY_SSH_CMD here, for a login of its own."
    ),
    r"refused|no route to host|unreachable|timed out|operation timeout": (
        "The relay cannot be reached: {line}. See whether it runs, and to your network."
    ),
    r"connection .*(closed|reset|aborted)|broken pipe|not responding": (
        "The connection to the relay broke: {line}. See whether it runs, and to your network."
    ),
    r"\bsh\b.*not found|\bnot found\b.*\bsh\b|account is currently not available": (
        "The relay lets nobody run `sh`: {line}. Log in as a user who may."
    ),
}


def ending(
    said: Iterable[str], exit_code: int | None, shown: str, hide: Callable[[str], str] = str
) -> TransportError:
    """Put into a sentence why an ssh ended.

    Args:
        said: The last lines of its stderr, clean.
        exit_code: What it ended with, if it has.
        shown: What may be shown of its command.
        hide: Takes out of a line what must not be seen; what it means is judged before.
    """
    lines = [line.rstrip(" .\r") for line in said if not line.startswith("Allocated port")]
    for pattern, sentence in _REASONS.items():
        for line in reversed(lines):
            if re.search(pattern, line, re.IGNORECASE):
                return TransportError(f"{sentence.format(line=hide(line))} (RELAY_SSH_CMD is `{shown}`.)")
    if exit_code is not None and exit_code < 0:
        return TransportError(f"The ssh to the relay was ended by signal {-exit_code}.")
    how = "closed the connection" if exit_code is None else f"ended with exit code {exit_code}"
    last = f": {hide(lines[-1])}" if lines else ""
    return TransportError(f"The ssh to the relay {how}{last}. {_BY_HAND}. (RELAY_SSH_CMD is `{shown}`.)")
