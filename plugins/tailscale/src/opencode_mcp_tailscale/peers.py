"""The machines on which instances are looked for: what is asked of each, and what it has."""

import dataclasses
from collections.abc import Callable, Iterator

from opencode_mcp import Endpoint, Rejection, clean_line
from opencode_mcp_tailscale.asking import Answer, ask_index, ask_port
from opencode_mcp_tailscale.choosing import Candidate
from opencode_mcp_tailscale.here import ask_here, ask_port_here
from opencode_mcp_tailscale.index import PATH, Entry
from opencode_mcp_tailscale.localapi import LocalApi
from opencode_mcp_tailscale.reach import Reach, host_header, origin
from opencode_mcp_tailscale.rounds import Question, Rounds
from opencode_mcp_tailscale.settings import TailscaleSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """An instance that is published.

    Attributes:
        endpoint: What is published.
        candidate: The machine that has it.
        port: The port at which it is reached.
    """

    endpoint: Endpoint
    candidate: Candidate
    port: int

    @property
    def host(self) -> str:
        """What its machine is called, with the port; empty if it has no name, or is this one."""
        return host_header(self.candidate, self.port).get("Host", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Forgotten:
    """An instance in the index that does not answer, and the question whether it does again."""

    entry: Entry
    question: Question


class Peer:
    """One machine.

    Its ports are asked only where it has no index, but on this machine, always.

    Args:
        candidate: The machine.
        api: The tailscaled of this machine.
        reach: The way to it.
        settings: Say which ports.
        rounds: Ask the questions.
        changed: Called with it when what it has may have changed.
    """

    def __init__(
        self,
        candidate: Candidate,
        *,
        api: LocalApi,
        reach: Reach,
        settings: TailscaleSettings,
        rounds: Rounds,
        changed: Callable[["Peer"], None],
    ) -> None:
        self.candidate = candidate
        self._api = api
        self._reach = reach
        self._settings = settings
        self._rounds = rounds
        self._changed = changed
        self._index = Question(self._ask_index, self._told, index=True, likely=candidate.machine.busy)
        self._ports = {port: self._port(port) for port in settings.ports}
        self._forgotten: dict[str, _Forgotten] = {}
        if candidate.machine.online or candidate.own:
            rounds.add(self._index)
        else:
            self._index.retired = True

    @property
    def questions(self) -> Iterator[Question]:
        """All that it is asked."""
        yield from (self._index, *self._ports.values())
        yield from (forgotten.question for forgotten in self._forgotten.values())

    @property
    def settled(self) -> bool:
        """Whether it has been asked, if it can be."""
        return all(question.settled for question in self.questions if not question.retired)

    @property
    def has_index(self) -> bool:
        """Whether it tells of its instances."""
        return self._index.entries is not None

    @property
    def _wants_ports(self) -> bool:
        return self._index.asked and (not self.has_index or self.candidate.own)

    def take(self, candidate: Candidate) -> None:
        """Take note of how the machine stands now."""
        before, self.candidate = self.candidate.machine, candidate
        machine = candidate.machine
        if not machine.online and not candidate.own:
            self.retire()
        elif self._index.retired or machine.addresses != before.addresses or machine.name != before.name:
            self._ask_anew()

    def _told(self, changed: bool) -> None:
        if self._index.retired:
            return
        wanted = self._wants_ports
        for question in self._ports.values():
            if not wanted:
                question.retired = True
                question.forget()  # also what came while the index was found
            elif question.retired:
                question.retired = False
                self._rounds.add(question)
        if changed or self._forgotten:
            changed = self._recall() or changed
        if changed:
            self._changed(self)

    def _recall(self) -> bool:
        """List again what was forgotten and answers, or is elsewhere now; return whether there was any."""
        told = {entry.id: (entry.path, entry.url) for entry in self._index.entries or ()}
        recalled = [
            known
            for known, one in self._forgotten.items()
            if one.question.entries or told.get(known) != (one.entry.path, one.entry.url)
        ]
        for known in recalled:
            self._forgotten.pop(known).question.retired = True
        return bool(recalled)

    def retire(self) -> None:
        """Ask it nothing for now."""
        for question in self.questions:
            question.retired = True

    def forget(self, listed: Listed) -> None:
        """List an instance no more until it answers again."""
        for port, question in self._ports.items():
            if listed.endpoint.id == self._id_at(port):
                question.forget()
        for entry in self._index.entries or ():
            if listed.endpoint.id == self._id_of(entry) and entry.id not in self._forgotten:
                question = self._instance(entry)
                self._forgotten[entry.id] = _Forgotten(entry=entry, question=question)
                question.retired = self._index.retired
                if not question.retired:
                    self._rounds.add(question)
        self._changed(self)

    def listed(self) -> Iterator[Listed]:
        """What it has."""
        urls: set[str] = set()
        for entry in self._index.entries or ():
            if entry.id not in self._forgotten:
                port = self._settings.index_port
                url = entry.url or origin(self.candidate, port) + entry.path.rstrip("/")
                urls.add(url)
                yield self._listed(self._id_of(entry), entry, url, port)
        for port, question in self._ports.items():
            url = origin(self.candidate, port)
            for entry in question.entries or ():
                if url not in urls:
                    yield self._listed(self._id_at(port), entry, url, port)

    def rejected(self) -> Iterator[Rejection]:
        """What answers there, and is not listed."""
        where = clean_line(self.candidate.machine.name or self.candidate.machine.id, 200)
        if self._index.problem:
            yield Rejection(source=f"{where}:{self._settings.index_port}{PATH}", reason=self._index.problem)

    def _listed(self, known: str, entry: Entry, url: str, port: int) -> Listed:
        machine = self.candidate.machine
        # On this machine others may listen as well.
        vouched = entry.mine if self.candidate.own else self.candidate.vouched
        short = clean_line(machine.short_name, 100)
        name = entry.name or short
        if port != self._settings.index_port:
            name = f"{short}-{entry.name}" if entry.name else short
        labels = {"node": machine.name or machine.id, "owner": clean_line(machine.owner, 200)}
        if entry.version:
            labels["version"] = entry.version
        if entry.guarded is not None:
            labels["auth"] = "basic" if entry.guarded else "none"
        if not vouched:  # it may call itself as another one is called
            name = f"{clean_line(name, 100)}@{clean_line(machine.name or machine.id, 90)}"
            whose = "another user of this machine" if self.candidate.own else clean_line(machine.owner, 100)
            labels["identity"] = f"of {whose}"
        endpoint = Endpoint(
            id=known,
            name=clean_line(name, 200),
            url=url,
            hostname=short,
            labels=labels,
            vouched=vouched,
        )
        return Listed(endpoint=endpoint, candidate=self.candidate, port=port)

    def _id_of(self, entry: Entry) -> str:
        return f"{self.candidate.machine.id}/{entry.id}"

    def _id_at(self, port: int) -> str:
        return f"{self.candidate.machine.id}:{port}"

    def _ask_anew(self) -> None:
        ports = self._ports.values() if self._wants_ports else ()
        forgotten = [one.question for one in self._forgotten.values()]
        for question in (self._index, *ports, *forgotten):
            question.retired = False
            self._rounds.add(question)

    async def _ask_index(self, patience: float) -> Answer:
        if self.candidate.own:
            return await ask_here(self._api, self._settings.index_port)
        return await ask_index(self._reach, self.candidate, self._settings.index_port, patience)

    def _port(self, port: int) -> Question:
        async def ask(patience: float) -> Answer:
            if self.candidate.own:
                return await ask_port_here(origin(self.candidate, port))
            return await ask_port(self._reach, self.candidate, port, patience)

        question = Question(ask, self._told)
        question.retired = True
        return question

    def _instance(self, entry: Entry) -> Question:
        async def ask(patience: float) -> Answer:
            if self.candidate.own:
                return await ask_port_here(entry.url)
            return await ask_port(
                self._reach, self.candidate, self._settings.index_port, patience, entry.path
            )

        return Question(ask, self._told)
