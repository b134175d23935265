"""Writes what an examination found for a person, who reads from the top down."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from opencode_mcp.doctor import EndpointReport, Environment, Report, Setting, State, Step, TransportReport

_MARKS = {State.OK: "✓", State.WARNING: "!", State.FAILED: "✗", State.SKIPPED: "–"}  # noqa: RUF001 - a dash as wide as the others
_PLAIN_MARKS = {State.OK: "+", State.WARNING: "!", State.FAILED: "x", State.SKIPPED: "-"}
_STYLES = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red", State.SKIPPED: "dim"}
_WHOLE_LINES = 10_000
_NAME = 14
_NARROWEST = 20
_WIDEST = 40
_IN_FULL = 10
"""So many endpoints that are not well are shown with their whole path and the mend, the others in a line."""


def show(report: Report) -> None:
    """Print a report on stdout."""
    _Page().report(report)


class _Page:
    def __init__(self) -> None:
        # Who reads lines, not a screen, gets each as one line.
        width = None if sys.stdout.isatty() else _WHOLE_LINES
        self._console = Console(width=width, highlight=False, emoji=False, markup=False)
        try:
            "".join(_MARKS.values()).encode(sys.stdout.encoding)
            self._marks = _MARKS
        except UnicodeError:
            self._marks = _PLAIN_MARKS

    def report(self, report: Report) -> None:
        self._environment(report.environment)
        self._steps(report.steps, {"settings": _in_force(report.settings)}, indent=0)
        for transport in report.transports:
            self._transport(transport)
        self._console.print()
        self._verdict(report)

    def _environment(self, environment: Environment) -> None:
        packages = dict(environment.packages)
        ours = {name: packages.pop(name) for name in list(packages) if name.startswith("opencode-mcp")}
        self._line(0, None, "packages", _listed(ours))
        self._line(0, None, "python", f"{environment.python} on {environment.platform}; {_listed(packages)}")
        soft, hard = (one or "any number" for one in (environment.open_files, environment.open_files_most))
        raised = "" if soft == hard else f"; the server raises that, to {hard} at most"
        self._line(0, None, "open files", f"at most {soft}{raised}")
        proxies = ", ".join(environment.proxies)
        self._line(0, None, "proxies", f"{proxies} set; not used for instances" if proxies else "none set")
        self._console.print()

    def _transport(self, transport: TransportReport) -> None:
        self._console.print()
        self._console.print(Text(f"transport {transport.name}", "bold"), soft_wrap=True)
        self._steps(transport.steps, {"settings": _in_force(transport.settings)}, indent=2)
        for one in transport.rejected:
            self._line(4, State.SKIPPED, "", f"{one.source}: {one.reason}")
        well = [one for one in transport.endpoints if one.state is State.OK]
        unwell = [one for one in transport.endpoints if one.state is not State.OK]
        names, urls = _column([one.name for one in well]), _column([one.url for one in well])
        for one in well:
            self._line(2, State.OK, f"{one.name:<{names}}", f"{one.url:<{urls}}  {_in_short(one)}")
        unwell.sort(key=lambda one: one.state is State.FAILED)  # the worst stands last, where one looks
        for number, one in enumerate(unwell, start=1):
            self._unwell(one, in_full=number > len(unwell) - _IN_FULL)

    def _unwell(self, endpoint: EndpointReport, *, in_full: bool) -> None:
        told = [step for step in endpoint.steps if step.state in (State.FAILED, State.WARNING)]
        told = told or [step for step in endpoint.steps if step.fix]  # kept out
        if not in_full:
            why = "; ".join(f"{step.name}: {step.detail}" for step in told)
            self._line(2, endpoint.state, endpoint.name, f"{endpoint.url}  {why}")
            return
        self._line(2, endpoint.state, endpoint.name, endpoint.url)
        path = Text("  ").join(
            Text(f"{self._marks[step.state]} {step.name}", _STYLES[step.state]) for step in endpoint.steps
        )
        self._wrapped(Text(" " * 4), path)
        for step in told:
            self._wrapped(Text(" " * 4), Text(f"{step.name}: {step.detail}"))
            self._fix(4, step)

    def _steps(self, steps: Sequence[Step], more: dict[str, str], *, indent: int) -> None:
        for step in steps:
            if step.state is State.SKIPPED:
                continue
            known = more.get(step.name, "") if step.state is State.OK else ""
            self._line(indent, step.state, step.name, step.detail or known)
            self._fix(indent + 2, step)
        if skipped := [step.name for step in steps if step.state is State.SKIPPED]:
            self._line(indent, State.SKIPPED, "not tried", ", ".join(skipped))

    def _fix(self, indent: int, step: Step) -> None:
        if step.fix:  # not wrapped by us, so that a command can be copied
            line = Text.assemble(" " * indent, ("fix: ", "bold"), step.fix)
            self._console.print(line, soft_wrap=True)

    def _line(self, indent: int, state: State | None, name: str, text: str) -> None:
        head = Text(" " * indent)
        if state is not None:
            head.append(f"{self._marks[state]} ", _STYLES[state])
        head.append(f"{name:<{_NAME}} " if name else "", "" if state is None else "bold")
        self._wrapped(head, Text(text, "red" if state is State.FAILED else ""))

    def _wrapped(self, head: Text, text: Text) -> None:
        """Print `text` behind `head`, and all its lines in one column."""
        column = min(head.cell_len, max(2, self._console.width - _NARROWEST))
        lines = text.wrap(self._console, max(_NARROWEST, self._console.width - head.cell_len - 1))
        for number, line in enumerate(lines or [Text()]):
            line.rstrip()
            whole = Text.assemble(head if number == 0 else " " * column, line)
            whole.rstrip()
            self._console.print(whole, soft_wrap=True)

    def _verdict(self, report: Report) -> None:
        endpoints = report.endpoints
        well = sum(one.state in (State.OK, State.WARNING) for one in endpoints)
        count = f"{well} of {len(endpoints)} endpoints can be used" if endpoints else "no endpoint was found"
        if report.state is State.FAILED:
            said = f"Something is broken, see {self._marks[State.FAILED]} above: {count}."
        elif endpoints:
            said = f"{'All is well' if report.state is State.OK else 'Nothing is broken'}: {count}."
        else:
            said = f"Nothing is broken, but {count}."
        self._wrapped(Text(), Text(said, _STYLES[report.state]))


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _in_force(settings: Sequence[Setting]) -> str:
    given = [one for one in settings if one.given]
    told = [f"{one.variable} {one.value}" if one.secret else f"{one.variable}={one.value}" for one in given]
    others = len(settings) - len(given)
    return "; ".join([*told, f"{others} at their defaults"] if others else told)


def _column(texts: Sequence[str]) -> int:
    return min(max(map(len, texts), default=0), _WIDEST)


def _in_short(endpoint: EndpointReport) -> str:
    took = f"first event {endpoint.first_event_ms:g} ms, round trip {endpoint.round_trip_ms:g} ms"
    return f"OpenCode {endpoint.version}, {took}"
