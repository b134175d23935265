"""One ssh with a shell at its far end: takes commands; its replies are picked out of whatever comes.

What it is asked is in `relay.py`; why it ended, in words for a person, in `ending.py`.
"""

import contextlib
import logging
import re
import secrets
import shutil
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.abc import ByteReceiveStream, Process

from opencode_mcp import TransportError, clean_line
from opencode_mcp_local_relay.process import end, piped, start

logger = logging.getLogger(__name__)

_LINE_LIMIT = 128 * 1024
"""Bytes; the longest line that is listened to is a registration of at most 64 KiB."""
_LINES_KEPT = 1000
_LINES_LOGGED = 500
_LAST_WORDS_SECONDS = 0.5

T = TypeVar("T")


class EndedError(Exception):
    """The process has ended, or can no longer be talked to."""


class Shell:
    """A POSIX `sh` that reads what to do from the standard input of an ssh process.

    Attributes:
        said: The last lines that ssh wrote to stderr, clean, but with all that must not be seen.
        allocated: The port that the far end chose for our `-R 0:…`, once ssh has named it.
        over: Whether the process has ended or its output has.
        listening: The scope of `listen`.
    """

    def __init__(self, process: Process, hide: Callable[[str], str], forwarded_to: str) -> None:
        self.said: deque[str] = deque(maxlen=30)
        self.allocated: int | None = None
        self.over = False
        self.listening = anyio.CancelScope(shield=True)
        self._process = process
        self._hide = hide
        # The user's configuration may hold forwards as well.
        self._allocated = re.compile(
            rf"Allocated port (\d{{1,5}}) for remote forward to {re.escape(forwarded_to)}\b"
        )
        self._nonce = secrets.token_hex(16)
        self._asked = 0
        self._replies: dict[str, list[str]] = {}
        self._news = anyio.Event()
        self._output_ended = anyio.Event()
        self._stderr_ended = anyio.Event()
        self._logged = 0

    @property
    def exit_code(self) -> int | None:
        """What the process ended with; None while it runs."""
        return self._process.returncode

    async def tell(self, script: str) -> None:
        """Hand the shell something to read.

        Raises:
            EndedError: If it cannot take it.
        """
        try:
            await piped(self._process.stdin).send(script.encode(errors="surrogateescape") + b"\n")
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._conclude()
            raise EndedError from None

    async def ask(self, command: str, seconds: float) -> list[str]:
        """Have the shell run `command`, which `say`s lines and then one that starts with `= `, the last one.

        Raises:
            EndedError: If the process ends before.
            TimeoutError: If it takes longer than `seconds`.
        """
        self._asked += 1
        key = f"{self._nonce}.{self._asked}"
        lines = self._replies[key] = []
        try:
            with anyio.fail_after(seconds):
                await self.tell(f"q={key}\n{command}")
                await self.until(lambda: True if lines and lines[-1].startswith("= ") else None)
            return lines
        finally:
            del self._replies[key]

    async def until(self, found: Callable[[], T | None], seconds: float | None = None) -> T | None:
        """Wait until `found` finds something, and return it; None if it does not within `seconds`.

        Raises:
            EndedError: If the process ends before.
        """
        with anyio.move_on_after(seconds):
            while (result := found()) is None:
                if self.over:
                    raise EndedError
                await self._news.wait()
            return result
        return None

    def poke(self) -> None:
        """Have who waits look again."""
        self._news.set()
        self._news = anyio.Event()

    async def listen(self) -> None:
        """Read what the process writes, and notice its end, until `listening` is cancelled.

        Nothing else ends it, for who is cancelled may still have something to ask.
        """
        with self.listening:
            async with anyio.create_task_group() as group:
                group.start_soon(_read, piped(self._process.stdout), self._take_output, self._output_ended)
                group.start_soon(_read, piped(self._process.stderr), self._take_stderr, self._stderr_ended)
                group.start_soon(self._notice_exit)
                group.start_soon(self._notice_end)

    async def _notice_exit(self) -> None:
        await self._process.wait()
        self._output_ended.set()  # a grandchild may still hold the pipe

    async def _notice_end(self) -> None:
        await self._output_ended.wait()
        await self._conclude()

    async def _conclude(self) -> None:
        with anyio.move_on_after(_LAST_WORDS_SECONDS):
            await self._process.wait()
            await self._stderr_ended.wait()
        self.over = True
        self.poke()

    def _take_output(self, line: bytes) -> None:
        key, _, text = line.partition(b" ")
        reply = self._replies.get(key.decode(errors="replace"))
        if reply is not None and len(reply) < _LINES_KEPT:
            reply.append(text.decode(errors="replace"))
            self.poke()

    def _take_stderr(self, line: bytes) -> None:
        text = clean_line(line.decode(errors="replace"), 300)
        if not text:
            return
        if (match := self._allocated.search(text)) and 0 < int(match[1]) < 65536:
            self.allocated = int(match[1])
        self.said.append(text)
        self._logged += 1
        if self._logged <= _LINES_LOGGED:
            logger.debug("ssh: %s", self._hide(text))
        self.poke()


@asynccontextmanager
async def opened_shell(
    words: Sequence[str], hide: Callable[[str], str] = str, forwarded_to: str = ""
) -> AsyncGenerator[Shell]:
    """Run a command that ends in a remote `sh` for as long as the context is entered, and not longer.

    Args:
        words: The command, options and all.
        hide: Takes out of a line what must not be seen in a log.
        forwarded_to: Where its `-R` leads, as `host:port`, if it has one.

    Raises:
        TransportError: If there is no such program.
    """
    if await anyio.to_thread.run_sync(shutil.which, words[0]) is None:
        raise TransportError(
            f"RELAY_SSH_CMD begins with {clean_line(words[0], 100)}, which is not a program that can be "
            "started here. Install it, or give its full path."
        )
    failure: Exception | None = None
    process = await start(words, die_with_us=True)
    try:
        async with anyio.create_task_group() as group:
            shell = Shell(process, hide, forwarded_to)
            group.start_soon(shell.listen)
            try:
                yield shell
            except Exception as error:  # raised outside, lest it becomes an exception group
                failure = error
            finally:
                shell.listening.cancel()
    finally:
        await end(process)
    if failure is not None:
        raise failure


async def _read(stream: ByteReceiveStream, take: Callable[[bytes], None], ended: anyio.Event) -> None:
    """Read to the end, hand over the lines, and never keep much."""
    rest = b""
    with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                take(line)
            rest = rest if len(rest) <= _LINE_LIMIT else b""
    if rest:
        take(rest)
    ended.set()
