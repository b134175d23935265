"""A tailscaled without a tailnet: its LocalAPI as the real one answers, over what a test says there is.

Written after the source of tailscaled 1.103. Two of them can be joined, so that what one announces with
`serve` is met by whoever dials it through the other. The parts are in the `fake_tailscaled_*` modules.
"""

import contextlib
import dataclasses
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from support.fake_tailscaled_bus import Bus, Generation
from support.fake_tailscaled_dial import Dialler, address
from support.fake_tailscaled_door import Door
from support.fake_tailscaled_serve import RefusedError, ServeConfigs
from support.fake_tailscaled_tailnet import STATES, SUFFIX, Peer, Row, Tailnet
from support.fake_tailscaled_web import Place, ServedWeb
from support.fake_tailscaled_wire import Answer, Request, Stream, error_json, go_json, text

__all__ = ["FakeTailscaled", "Peer", "Place", "RefusedError", "ServedWeb", "Stream", "join"]

_FOREIGN_PORT = 60000


class FakeTailscaled(Door, Dialler):
    """Serves while it is entered; what there is can be changed before, meanwhile and after.

    Attributes:
        tailnet: What it shows. Change it by the methods here, so that who watches is told.
        writable: Whether who asks is root or the operator.
        prefs: What `prefs` answers.
        whois: What `whois` answers, by the `addr` that was asked for; others are found among the peers.
        serve: The serve config.
        web: What this machine serves to the others.
        conflicts: How many of the next changes to the serve config come too late, after somebody else's.
    """

    def __init__(
        self,
        socket: Path | str | None = None,
        *,
        name: str = "desk",
        suffix: str = SUFFIX,
        user: str = "ann@example.com",
        generation: Generation = "patches",
        writable: bool = True,
        token: str | None = None,
        sec_tailscale: bool = False,
    ) -> None:
        """Make one; it serves once it is entered.

        Args:
            socket: The path to listen at.
            name: What this machine is called in the tailnet.
            suffix: What all names there end with.
            user: Who this machine belongs to.
            generation: How the bus tells of peers: see `Generation`.
            writable: Whether who asks is root or the operator.
            token: Listen by TCP too, and want this as the password there, as the apps for macOS do.
            sec_tailscale: Want the header `Sec-Tailscale: localapi` there, as tsnet does.
        """
        self.tailnet = Tailnet(name, suffix, user)
        Door.__init__(self, socket, token, sec_tailscale=sec_tailscale)
        Dialler.__init__(self, self.tailnet)
        self.writable = writable
        self.prefs: Row = {
            "ControlURL": "https://controlplane.tailscale.com",
            "RouteAll": False,
            "CorpDNS": True,
            "WantRunning": True,
            "LoggedOut": False,
            "ShieldsUp": False,
            "AdvertiseTags": None,
            "Hostname": name,
            "AdvertiseRoutes": None,
            "AdvertiseServices": None,
            "NetfilterMode": 2,
            "Config": None,
        }
        self.whois: dict[str, Row] = {}
        self.serve = ServeConfigs()
        self.web = ServedWeb(self.serve, suffix=suffix, profile=self._profile)
        self.conflicts = 0
        self._bus = Bus(self.tailnet, generation, self.prefs)
        self._foreign = 0
        self._batch: tuple[dict[str, frozenset[str] | None], dict[str, Peer]] | None = None
        self._met: list[FakeTailscaled] = []
        self._endpoints = {
            "status": self._answer_status,
            "watch-ipn-bus": self._answer_watch,
            "serve-config": self._answer_serve_config,
            "prefs": self._answer_prefs,
            "whois": self._answer_whois,
            "dial": self._answer_dial,
        }

    # What there is

    def add_peer(self, name: str | None = None, **fields: Any) -> Peer:
        """Add a machine.

        Args:
            name: Its label, or its full name; made up without.
            **fields: Of `Peer`; `id`, `ips`, `user` (a login) and all others are made up when not said.
        """
        peer = self.tailnet.new(name=name, **fields)
        self.tailnet.peers[peer.id] = peer
        self._tell(peer.id, None)
        return peer

    def update_peer(self, peer_id: str, **changes: Any) -> Peer:
        """Change some fields of a machine; `online` and `last_seen` alone are told of as a patch."""
        peer = dataclasses.replace(self.tailnet.peers[peer_id], **changes)
        self.tailnet.peers[peer_id] = peer
        self._tell(peer_id, frozenset(changes))
        return peer

    def remove_peer(self, peer_id: str) -> None:
        """Remove a machine."""
        self._tell(peer_id, None, self.tailnet.peers.pop(peer_id))

    @contextlib.contextmanager
    def at_once(self) -> Generator[None]:
        """Tell of all machines that are changed in this block in one line."""
        assert self._batch is None
        changes, removed = self._batch = {}, {}
        try:
            yield
        finally:
            self._batch = None
            self._say_peers(changes, removed)

    @contextlib.contextmanager
    def silently(self) -> Generator[None]:
        """Tell nobody of the machines that are changed in this block, as when a line was lost."""
        assert self._batch is None
        self._batch = {}, {}
        try:
            yield
        finally:
            self._batch = None
            self.tailnet.changed()

    @property
    def me(self) -> Peer:
        """This machine."""
        return self.tailnet.me

    def update_me(self, **changes: Any) -> Peer:
        """Change some fields of this machine."""
        self.tailnet.me = dataclasses.replace(self.tailnet.me, **changes)
        self.tailnet.changed()
        self._bus.say(SelfChange=self.tailnet.node(self.tailnet.me))
        for other in self._met:
            other._meet(self)
        return self.tailnet.me

    @property
    def state(self) -> str:
        """Its state, such as `Running` or `NeedsLogin`; setting it tells who watches."""
        return self.tailnet.state

    @state.setter
    def state(self, state: str) -> None:
        number = STATES.index(state)
        self.tailnet.state = state
        self.tailnet.changed()
        self._bus.say(State=number)

    @property
    def auth_url(self) -> str:
        """Where to log in; setting it tells who watches."""
        return self.tailnet.auth_url

    @auth_url.setter
    def auth_url(self, url: str) -> None:
        self.tailnet.auth_url = url
        self.tailnet.changed()
        if url:
            self._bus.say(BrowseToURL=url)

    @property
    def tun(self) -> bool:
        """Whether it has a network interface; without, every port of this host is in the tailnet."""
        return self.tailnet.tun

    @tun.setter
    def tun(self, tun: bool) -> None:
        self.tailnet.tun = self.web.tun = tun
        self.tailnet.changed()

    def set_prefs(self, **prefs: Any) -> None:
        """Change prefs, such as `ShieldsUp`, and tell who watches."""
        self.prefs.update(prefs)
        self._bus.say(Prefs=self.prefs)

    # The bus

    @property
    def generation(self) -> Generation:
        """How the bus tells of peers."""
        return self._bus.generation

    @generation.setter
    def generation(self, generation: Generation) -> None:
        self._bus.generation = generation

    @property
    def watchers(self) -> int:
        """How many watch the bus."""
        return len(self._bus.sessions)

    @property
    def sessions(self) -> list[str]:
        """The ids of those that watch."""
        return list(self._bus.sessions)

    def say(self, **fields: object) -> None:
        """Send a line of the bus with some fields of a Notify."""
        self._bus.say(**fields)

    def say_raw(self, written: bytes) -> None:
        """Send bytes on the bus, whether they are a line or not."""
        self._bus.say_raw(written)

    def fell_behind(self) -> None:
        """Send everybody away as too slow: a last line, and the end."""
        self._bus.fall_behind()

    def drop_watchers(self, *, abort: bool = False) -> None:
        """End every stream of the bus; with `abort` amid it, as when the daemon dies."""
        for session in tuple(self._bus.sessions):
            self._bus.end(session, abort=abort)

    # The serve config

    @property
    def serve_config(self) -> Row | None:
        """The serve config; not to be changed."""
        return self.serve.config if self.tailnet.logged_in else None

    def post_serve_config(self, config: Row | None) -> None:
        """Set the serve config as another client, whatever it was; who loses its session is sent away.

        Raises:
            RefusedError: It is not allowed.
        """
        self._replace_serve_config(config, "")

    # Endpoints: each returns its answer, or whether the connection can be used on after it answered itself

    async def _answer_status(self, _: Stream, request: Request) -> Answer:
        peers = request.query.get("peers", "true").lower() not in ("false", "f", "0")
        return Answer(200, self.tailnet.status(peers=peers))

    async def _answer_watch(self, stream: Stream, request: Request) -> Answer | bool:
        asked = request.query.get("mask", "0")
        if not asked.isdecimal():
            return text(400, "bad mask")
        if refusal := self._bus.refusal(int(asked)):
            return text(400, refusal)
        return await self._bus.watch(stream, int(asked), self.serve.end)

    async def _answer_serve_config(self, _: Stream, request: Request) -> Answer:
        if request.method == "GET":
            current = self.serve if self.tailnet.logged_in else ServeConfigs()
            return Answer(200, current.written, headers={"Etag": current.etag})
        if request.method != "POST":
            return text(405, "method not allowed")
        if not self.writable:
            return text(403, "serve config denied")
        if not self.tailnet.logged_in:
            return error_json("updating config: netMap is nil")
        if self.conflicts:
            self.conflicts -= 1
            self._change_as_somebody_else()
        try:
            config = json.loads(request.body)
            self._replace_serve_config(config, request.headers.get("if-match", ""))
        except ValueError as error:
            return error_json(f"decoding config: {error}")
        except RefusedError as refused:
            return refused.answer
        return Answer(200)

    async def _answer_prefs(self, _: Stream, request: Request) -> Answer:
        if request.method == "PATCH":
            if not self.writable:
                return text(403, "prefs write access denied")
            try:
                masked: Row = json.loads(request.body)
            except ValueError as error:
                return text(400, str(error))
            self.set_prefs(**{name: masked[name] for name in masked if masked.get(f"{name}Set") is True})
        elif request.method not in ("GET", "HEAD"):
            return text(405, "unsupported method")
        return Answer(200, go_json(self.prefs) + b"\n")

    async def _answer_whois(self, _: Stream, request: Request) -> Answer:
        asked = request.query.get("addr", "")
        if not asked:
            return text(400, "missing 'addr' parameter")
        if (known := self.whois.get(asked)) is not None:
            return Answer(200, go_json(known))
        host = asked if asked.startswith("nodekey:") else address(asked)
        if host is None:
            return text(400, "invalid 'addr' parameter")
        peer = self.me if host in (self.me.key, *self.me.ips) else self.tailnet.find(host)
        if peer is None:
            return text(404, "no match for IP:port")
        profile = self.tailnet.profile(peer.user)
        return Answer(200, go_json({"Node": self.tailnet.node(peer), "UserProfile": profile, "CapMap": None}))

    def _tell(self, peer_id: str, names: frozenset[str] | None, removed: Peer | None = None) -> None:
        """Tell who watches of a machine; `names` are of what has changed, None if it is new."""
        if self._batch is None:
            self._say_peers({} if removed else {peer_id: names}, {peer_id: removed} if removed else {})
            return
        changes, gone = self._batch
        if removed:
            changes.pop(peer_id, None)
            gone[peer_id] = removed
        elif names is None:
            changes[peer_id] = None
        elif (before := changes.get(peer_id, frozenset())) is not None:
            changes[peer_id] = before | names

    def _say_peers(self, changes: Mapping[str, frozenset[str] | None], removed: Mapping[str, Peer]) -> None:
        self.tailnet.changed()
        if self._bus.sessions and (changes or removed):
            peers = self.tailnet.peers
            self._bus.say_peers([(peers[one], names) for one, names in changes.items()], [*removed.values()])

    def _change_as_somebody_else(self) -> None:
        self._foreign += 1
        theirs = dict(self.serve.config or {})
        port = str(_FOREIGN_PORT + self._foreign)
        theirs["TCP"] = {**theirs.get("TCP", {}), port: {"TCPForward": "127.0.0.1:9"}}
        self._replace_serve_config(theirs, "")

    def _replace_serve_config(self, config: Any, if_match: str) -> None:
        for session in self.serve.replace(config, if_match, self._bus.sessions):
            self._bus.end(session)

    def _profile(self, source: str) -> Row | None:
        peer = self.tailnet.find(source)
        return self.tailnet.profile(peer.user) if peer and not peer.tags else None

    def _meet(self, other: "FakeTailscaled") -> None:
        """Take another fake as a peer, as it is now."""
        peer = other.me
        self.tailnet.peers[peer.id] = peer
        self._tell(peer.id, None)
        for alias in peer.aliases:
            self.machines[alias] = lambda port: other._place_for(port, self.me.ips[0])

    def _place_for(self, port: int, source: str) -> Place:
        """Find out where a connection from another machine of the tailnet leads."""
        if not self.running or self.state != "Running" or self.prefs["ShieldsUp"]:
            return "hang"
        return self.web.at(port, source)


def join(one: FakeTailscaled, other: FakeTailscaled) -> None:
    """Make two machines peers of each other: a dial of one meets the serve config of the other."""
    assert one.me.id != other.me.id, "They need different names"
    for here, there in ((one, other), (other, one)):
        here._met.append(there)
        there._meet(here)
