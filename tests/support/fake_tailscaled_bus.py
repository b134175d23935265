"""The IPN bus of a fake tailscaled: who watches, and what each generation of the daemon tells them."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Literal

from support.fake_tailscaled_tailnet import STATES, VERSION, Peer, Row, Tailnet
from support.fake_tailscaled_wire import JSON, Stream, chunk, first_of, go_json, head

Generation = Literal["netmap", "changes", "patches"]
"""Up to 1.96, the whole map at every change; 1.98, patches for who wants them; from 1.100, no map at all."""

INITIAL_STATE, INITIAL_PREFS, INITIAL_NET_MAP = 2, 4, 8
RATE_LIMIT, PEER_CHANGES, NO_NET_MAP, INITIAL_STATUS, PEER_PATCHES = 256, 4096, 8192, 16384, 32768
_DELTAS = PEER_CHANGES | NO_NET_MAP | INITIAL_STATUS | PEER_PATCHES
_IN_PROCESS = 65536
_QUEUE = 128
_FELL_BEHIND = "IPN bus consumer fell behind; closing watch"
_PATCHABLE = {"online", "last_seen"}


class Session:
    """One watcher."""

    def __init__(self, mask: int) -> None:
        self.id = secrets.token_hex(8)
        self.mask = mask
        self.ended = asyncio.Event()
        self.aborted = False
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE + 2)

    @property
    def full(self) -> bool:
        """Whether it has not taken what was said to it for too long."""
        return self._queue.qsize() >= _QUEUE

    def put(self, line: bytes) -> None:
        """Say a line."""
        self._queue.put_nowait(line)

    def close_with(self, line: bytes) -> None:
        """Forget what was not sent yet, say a last line, and end."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(line)
        self._queue.put_nowait(None)

    async def send_all(self, stream: Stream) -> None:
        """Send what is said, until the last."""
        while (line := await self._queue.get()) is not None:
            await stream.send(chunk(line))


class Bus:
    """All watchers.

    Attributes:
        sessions: Those that watch, by their ids.
        watched: How many there ever were.
    """

    def __init__(self, tailnet: Tailnet, generation: Generation, prefs: Row) -> None:
        self.generation: Generation = generation
        self.sessions: dict[str, Session] = {}
        self.watched = 0
        self._tailnet = tailnet
        self._prefs = prefs

    def refusal(self, mask: int) -> str | None:
        """Say what is wrong with a mask."""
        if self.generation != "patches":
            return None
        if mask & _IN_PROCESS:
            return "NotifyInProcessNoDisconnect is only valid for in-process IPN bus subscribers"
        if mask & RATE_LIMIT and mask & _DELTAS:
            return (
                f"NotifyRateLimit is incompatible with new-style IPN bus subscription bits {mask & _DELTAS}"
            )
        return None

    async def watch(self, stream: Stream, mask: int, ended: Callable[[str], None]) -> bool:
        """Serve a watcher until it goes, or is sent away.

        Args:
            stream: Its connection.
            mask: What it wants.
            ended: Is told its session when it is over.

        Returns:
            Whether the connection can be used on.
        """
        session = Session(mask)
        self.sessions[session.id] = session
        self.watched += 1
        try:
            first = head(200, {"content-type": JSON, "transfer-encoding": "chunked"})
            ini = self._initial(session)
            await stream.send(first + (chunk(line(**ini)) if ini else b""))
            await first_of(stream.gone(), session.ended.wait(), session.send_all(stream))
            if session.aborted:
                stream.abort()
                return False
            await stream.send(chunk(b""))
            return True
        finally:
            self.sessions.pop(session.id, None)
            ended(session.id)

    def say(self, **fields: object) -> None:
        """Send a line to everybody."""
        if self.sessions:
            self.say_raw(line(**fields))

    def say_raw(self, written: bytes) -> None:
        """Send bytes to everybody, whether they are a line or not."""
        for session in tuple(self.sessions.values()):
            self._put(session, written)

    def say_peers(
        self, changes: Sequence[tuple[Peer, frozenset[str] | None]], removed: Sequence[Peer]
    ) -> None:
        """Tell of changed machines, as the generation does.

        Args:
            changes: Each with the names of what has changed; None if it is new.
            removed: Those that are gone.
        """
        variants: dict[int, bytes | None] = {}
        for session in tuple(self.sessions.values()):
            kind = session.mask & (PEER_CHANGES | PEER_PATCHES)
            if kind not in variants:
                fields = self._peer_fields(kind, changes, removed)
                variants[kind] = line(**fields) if fields else None
            if (written := variants[kind]) is not None:
                self._put(session, written)

    def fall_behind(self) -> None:
        """Treat everybody as too slow."""
        for session in tuple(self.sessions.values()):
            self._cut_off(session)

    def end(self, session_id: str, *, abort: bool = False) -> None:
        """Send a watcher away without a word; or, with `abort`, as when the daemon dies."""
        if (session := self.sessions.pop(session_id, None)) is not None:
            session.aborted = abort
            session.ended.set()

    def _put(self, session: Session, written: bytes) -> None:
        if not session.full:
            session.put(written)
        elif self.generation == "patches":  # before, what found no room was lost
            self._cut_off(session)

    def _cut_off(self, session: Session) -> None:
        self.sessions.pop(session.id, None)
        session.close_with(line(ErrMessage=_FELL_BEHIND))

    def _initial(self, session: Session) -> Row:
        tailnet, mask, first = self._tailnet, session.mask, Row()
        if mask & INITIAL_STATE:
            first |= {"SessionID": session.id, "State": STATES.index(tailnet.state)}
            if tailnet.state == "NeedsLogin" and tailnet.auth_url:
                first["BrowseToURL"] = tailnet.auth_url
        if mask & INITIAL_PREFS:
            first["Prefs"] = self._prefs
        if mask & INITIAL_NET_MAP and tailnet.logged_in:
            first["NetMap"] = tailnet.net_map()
        if mask & INITIAL_STATUS and self.generation == "patches":
            first["InitialStatus"] = tailnet.as_row()
        return first

    def _peer_fields(
        self, kind: int, changes: Sequence[tuple[Peer, frozenset[str] | None]], removed: Sequence[Peer]
    ) -> Row:
        patches = [_patch(peer, names) for peer, names in changes if names and names <= _PATCHABLE]
        if self.generation == "patches":
            if not kind:
                return {}
            patchable = len(patches) and kind & PEER_PATCHES
            whole = [
                peer
                for peer, names in changes
                if not (patchable and names is not None and names <= _PATCHABLE)
            ]
            users = {peer.user for peer in whole}
            fields: Row = {
                "PeersChanged": [self._tailnet.node(peer) for peer in whole],
                "PeersRemoved": [peer.node_id for peer in removed],
                "PeerChangedPatch": patches if patchable else [],
                "UserProfiles": {
                    str(self._tailnet.user_id(one)): self._tailnet.profile(one) for one in users
                },
            }
            return {name: value for name, value in fields.items() if value}
        if (
            self.generation == "changes"
            and kind & PEER_CHANGES
            and not removed
            and len(patches) == len(changes)
        ):
            return {"PeerChanges": patches}
        return {"NetMap": self._tailnet.net_map()}


def line(**fields: object) -> bytes:
    """Write a line of the bus: a Notify."""
    notify: Row = {
        "Version": VERSION,
        "ErrMessage": None,
        "LoginFinished": None,
        "State": None,
        "Prefs": None,
        "NetMap": None,
        "Engine": None,
        "BrowseToURL": None,
        "ClientVersion": None,
        "DriveShares": None,
        **fields,
    }
    return go_json(notify) + b"\n"


def _patch(peer: Peer, names: frozenset[str]) -> Row:
    patch: Row = {"NodeID": peer.node_id}
    if "online" in names:
        patch["Online"] = peer.online
    if "last_seen" in names:
        patch["LastSeen"] = peer.last_seen
    return patch
