"""Logs in on the relay: with which words, and what may be seen of them."""

import dataclasses
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from opencode_mcp import TransportError
from opencode_mcp_local_relay.ending import NO_MULTIPLEXING, UNKNOWN_OPTION, ending
from opencode_mcp_local_relay.relay import Relay
from opencode_mcp_local_relay.settings import LocalRelaySettings
from opencode_mcp_local_relay.ssh import EndedError, Shell, opened_shell

QUIETLY = ("-T", "-a", "-x", "-o", "BatchMode=yes", "-o", "LogLevel=INFO", "-o", "ConnectTimeout=10")
"""Nothing is asked, and nothing of this machine lent; options of the user's come first, so they win."""
_NOT_SHARED = ("-o", "ControlMaster=no", "-o", "ControlPath=none")

Way = tuple[Sequence[str], re.Pattern[str]]
"""A command that ends in `sh` on the relay, and what ssh says if it is worth trying the next one."""


@dataclasses.dataclass
class Ability:
    """What the user's ssh was found to be unable to do, so that no login is wasted on it again."""

    multiplexes: bool = True
    knows_control: bool = True
    """Whether it knows the options for multiplexing; if not, it has none of any kind."""
    names_port: bool = True

    def learn(self, said: str) -> bool:
        """Conclude from what ssh said at its end that it cannot multiplex; whether that is new."""
        if self.multiplexes and NO_MULTIPLEXING.search(said):
            self.multiplexes = False
            self.knows_control = UNKNOWN_OPTION.search(said) is None
            return True
        if UNKNOWN_OPTION.search(said):  # so what it does not know was none of those left out
            self.multiplexes = self.knows_control = True
        return False


def control_words(master: Path | None, *, known: bool = True) -> Sequence[str]:
    """Return the options for a connection of our own: what went over one of the user's would outlive us.

    Args:
        master: The control socket to make; None for none.
        known: Whether this ssh knows such options at all.
    """
    if not known:
        return ()
    if master is None:
        return _NOT_SHARED
    return ("-o", "ControlMaster=yes", "-o", f"ControlPath={master}", "-o", "ControlPersist=no")


def ways(settings: LocalRelaySettings, master: Path | None = None) -> Sequence[Way]:
    """Return the commands for a login of its own, with the control socket `master` if there can be one."""
    start = [*settings.ssh_words, *QUIETLY]
    without: list[Way] = [
        ([*start, *control_words(None), "sh"], UNKNOWN_OPTION),
        ([*start, "sh"], re.compile(r"(?!)")),
    ]
    if master is None:
        return without
    return [([*start, *control_words(master), "sh"], NO_MULTIPLEXING), *without]


@asynccontextmanager
async def logged_in(
    settings: LocalRelaySettings, tried: Sequence[Way], seconds: float, instance_id: str = ""
) -> AsyncGenerator[tuple[Relay, Shell, int]]:
    """Open a shell on the relay by the first way that works; also yields the number of that one.

    Raises:
        TransportError: If none does within `seconds`, or the connection ends.
    """
    async with AsyncExitStack() as stack:
        for number, (words, otherwise) in enumerate(tried):
            shell = await stack.enter_async_context(opened_shell(words, hidden(settings.ssh_words)))
            relay = Relay(shell, settings.relay_dir, instance_id, trust_any_owner=settings.trust_any_owner)
            try:
                await relay.arrive(seconds)
            except EndedError:
                if number + 1 < len(tried) and otherwise.search("\n".join(shell.said)):
                    continue
                raise ended(settings, shell) from None
            except TimeoutError:
                raise TransportError(
                    f"The relay has not answered `{settings.ssh_shown or 'ssh'}` within {seconds:.0f} s."
                ) from None
            try:
                yield relay, shell, number
            except EndedError:
                raise ended(settings, shell) from None
            return


def ended(settings: LocalRelaySettings, shell: Shell) -> TransportError:
    """Put into a sentence why an ssh ended."""
    shown = settings.ssh_shown or "ssh"
    return ending(shell.said, shell.exit_code, shown, hidden(settings.ssh_words))


def hidden(words: Sequence[str]) -> Callable[[str], str]:
    """Return what takes the words of a command out of a line, but for the first: they may be secrets."""
    parts = {part for word in words[1:] for part in (word, word.partition("=")[2]) if len(part) >= 4}
    longest_first = sorted(parts, key=len, reverse=True)
    secret = re.compile("|".join(map(re.escape, longest_first)) if parts else r"(?!)")
    return lambda line: secret.sub("…", line)
