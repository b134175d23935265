"""Broken plugins as a person meets them: one message that says whose and how to mend it; the others work."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from opencode_mcp import CONTRACT_VERSION, packages
from opencode_mcp.testing import FakeOpenCode
from support.command import Command, Outcome
from support.distributions import Site
from support.fleets import until
from support.stdio_server import Wire, registered, serving

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PRELUDE = """
    import itertools
    import time
    from contextlib import asynccontextmanager
    from pathlib import Path

    import anyio

    from opencode_mcp import Endpoint, Settings, Transport, TransportPlugin, hookimpl


    class Nothing(Transport):
        async def discover(self):
            return []


    @asynccontextmanager
    async def open_it(settings):
        yield Nothing()


    def describe(**more):
        given = {"name": NAME, "summary": "For a test", "settings": Settings, "open": open_it}
        return [TransportPlugin(**{**given, **more})]


    @hookimpl
    def opencode_mcp_transports():
        return describe()


"""
"""The beginning of a transport's module, and a transport that works; the rest is indented alike."""
HANGS = "import threading; threading.Event().wait()"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def install_transport(site: Site, name: str, source: str, distribution: str = "") -> None:
    """Install the transport `name` of the distribution `<name>-dist` 0.7."""
    module = f"transport_{name.replace('-', '_')}"
    whole = PRELUDE.replace("NAME", repr(name)) + source
    site.install(
        distribution or f"{name}-dist", version="0.7", transports={name: module}, modules={module: whole}
    )


def install_hooks(site: Site, name: str, source: str) -> None:
    """Install the plugin `name` of the distribution `<name>-dist` 0.7."""
    module = f"hooks_{name.replace('-', '_')}"
    whole = f"    import threading\n    from opencode_mcp import hookimpl\n{source}"
    site.install(f"{name}-dist", version="0.7", plugins={name: module}, modules={module: whole})


def hook(name: str, arguments: str, body: str) -> str:
    return f"\n    @hookimpl\n    def opencode_mcp_instance_{name}({arguments}):\n        {body}\n"


@asynccontextmanager
async def healthy(command: Command) -> AsyncGenerator[FakeOpenCode]:
    """Have an OpenCode that works on the transport `local-relay`."""
    fake = FakeOpenCode()
    async with registered(command, fake):
        yield fake


async def run(command: Command, site: Site, *arguments: str, **variables: str) -> Outcome:
    return await command.meanwhile(*arguments, stdin=b"", PYTHONPATH=str(site.path), **variables)


def states(overview: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in overview["instances"]}


def the_one(lines: Sequence[str], *parts: str) -> str:
    """Return the only line that has the first part, and check that it has the others."""
    (line,) = [one for one in lines if parts[0] in one]
    for part in parts:
        assert part in line
    return line


# Selected transports that cannot be used: the start is refused.

REFUSED = {
    "import-error": (
        "    raise ValueError('no luck')",
        (
            "Plugin 'import-error' (from import-error-dist 0.7, transport_import_error) is broken: "
            f"ValueError: no luck. Install it afresh: {packages.reinstall('import-error-dist')}"
        ),
    ),
    "missing-dependency": (
        "    import surely_missing.part",
        (
            "Plugin 'missing-dependency' (from missing-dependency-dist 0.7, transport_missing_dependency) is "
            "broken: ModuleNotFoundError: No module named 'surely_missing'. "
            "Install it afresh, with the module 'surely_missing' that it needs: "
            f"{packages.reinstall('missing-dependency-dist')}"
        ),
    ),
    "wrong-contract": (
        "    @hookimpl\n    def opencode_mcp_transports():\n        return describe(contract=99)",
        (
            "Transport 'wrong-contract' (from wrong-contract-dist 0.7, transport_wrong_contract) was made "
            f"for contract version 99, this opencode-mcp has version {CONTRACT_VERSION}. Update both: "
            f"{packages.update('opencode-mcp-core', 'wrong-contract-dist')}"
        ),
    ),
    "hook-raises": (
        "    @hookimpl\n    def opencode_mcp_transports():\n        raise OSError('no disk')",
        (
            "Plugin 'hook-raises' (from hook-raises-dist 0.7, transport_hook_raises) is broken: "
            f"OSError: no disk. Install it afresh: {packages.reinstall('hook-raises-dist')}"
        ),
    ),
    "misspelled": (
        "    @hookimpl\n    def opencode_mcp_transport():\n        return describe()",
        (
            "Plugin 'misspelled (from misspelled-dist 0.7)' does not fit the hooks of opencode-mcp: unknown "
            "hook 'opencode_mcp_transport'"
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_selected_transport_that_is_broken_is_told_in_one_line_and_nothing_starts(
    command: Command, site: Site, name: str
):
    source, message = REFUSED[name]
    install_transport(site, name, source)
    async with healthy(command) as fake:
        ended = await run(command, site, "instances", "--json", TRANSPORT=f"local-relay,{name}")
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"opencode-mcp: {message}")
    assert "nstall it" in line or "pdate" in line
    assert not fake.requests


async def test_two_distributions_with_one_transport_are_both_named(command: Command, site: Site):
    install_transport(site, "twice", "")
    install_transport(site, "twice", "", distribution="other-dist")
    ended = await run(command, site, "instances", "--json", TRANSPORT="twice,local-relay")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "opencode-mcp: TRANSPORT asks for 'twice', which other-dist and twice-dist both bring. "
        "Uninstall all but one of them.\n"
    )


async def test_each_broken_transport_that_is_selected_has_its_line(command: Command, site: Site):
    for name, (source, _) in REFUSED.items():
        install_transport(site, name, source)
    ended = await run(command, site, "instances", TRANSPORT=",".join(REFUSED))
    assert ended.code == 2
    for line, (_, message) in zip(ended.err.splitlines(), REFUSED.values(), strict=True):
        assert line.removeprefix("opencode-mcp: ").startswith(message)


HANGING = {
    "hanging-import": f"    {HANGS}",
    "hanging-hook": f"    @hookimpl\n    def opencode_mcp_transports():\n        {HANGS}",
}


async def test_code_that_hangs_as_it_is_loaded_is_given_up_after_ten_seconds(
    command: Command, tmp_path: Path
):
    transports, hooks = Site(tmp_path / "transports"), Site(tmp_path / "hooks")
    for name, source in HANGING.items():
        install_transport(transports, name, source)
    install_hooks(hooks, "hanging-plugin", f"    {HANGS}")

    async def selected(name: str) -> None:
        ended = await run(command, transports, "instances", TRANSPORT=f"local-relay,{name}")
        assert (ended.code, ended.out) == (2, "")
        (line,) = ended.err.splitlines()
        assert line.startswith(f"opencode-mcp: Plugin '{name}' (from {name}-dist 0.7, ")
        assert "has not returned within 10 s" in line
        assert line.endswith(f"Install it afresh: {packages.reinstall(f'{name}-dist')}")

    async def installed() -> None:
        ended = await run(command, hooks, "instances", "--json")
        assert ended.code == 0
        assert states(json.loads(ended.out)) == {"laptop-shop": "online"}
        (line,) = ended.err.splitlines()
        assert "Plugin 'hanging-plugin' (from hanging-plugin-dist 0.7, " in line
        assert "has not returned within 10 s" in line
        assert packages.reinstall("hanging-plugin-dist") in line

    async with healthy(command), anyio.create_task_group() as tasks:
        for name in HANGING:
            tasks.start_soon(selected, name)
        tasks.start_soon(installed)


async def test_what_is_broken_and_not_selected_is_not_even_mentioned(command: Command, site: Site):
    for name, source in {**HANGING, **{name: source for name, (source, _) in REFUSED.items()}}.items():
        install_transport(site, name, source)
    install_transport(site, "twice", "")
    install_transport(site, "twice", "", distribution="other-dist")
    async with healthy(command):
        listed = await run(command, site, "instances", "--json")
        sent = await run(command, site, "send", "laptop-shop", "hello")
    assert (listed.code, listed.err) == (sent.code, sent.err) == (0, "")
    assert states(json.loads(listed.out)) == {"laptop-shop": "online"}
    assert sent.out == "You said: hello\n"


# Plugins with instance hooks that cannot be used: they are left out.


async def test_broken_plugins_with_instance_hooks_are_left_out_with_a_line_each_and_the_others_count(
    command: Command, site: Site, tmp_path: Path
):
    told = tmp_path / "told"
    broken = {
        "import-error": ("    raise ValueError('no luck')", "ValueError: no luck", "Install it afresh: "),
        "exits": ("    raise SystemExit(9)", "SystemExit: 9", "Install it afresh: "),
        "missing-dependency": (
            "    import surely_missing",
            "No module named 'surely_missing'",
            packages.reinstall("missing-dependency-dist"),
        ),
        "misspelled": (hook("admits", "endpoint", "pass"), "opencode_mcp_instance_admits", "Update"),
        "other-arguments": (hook("admit", "end_point", "pass"), "end_point", "Update"),
        "is-async": (
            "    @hookimpl\n    async def opencode_mcp_instance_admit(endpoint):\n        return False",
            "is async",
            "Update",
        ),
    }
    for name, (source, _, _) in broken.items():
        install_hooks(site, name, source)
    install_hooks(site, "good", hook("changed", "after", f"open({str(told)!r}, 'a').close()"))
    async with healthy(command):
        ended = await run(command, site, "instances", "--json")
    assert ended.code == 0
    assert states(json.loads(ended.out)) == {"laptop-shop": "online"}
    lines = ended.err.splitlines()
    assert len(lines) == len(broken)
    for name, (_, why, mend) in broken.items():
        the_one(lines, f"(from {name}-dist 0.7", why, mend, "Its hooks are not in force.")
    assert told.exists()


async def test_two_plugins_of_one_name_are_both_in_force_and_told_apart(command: Command, site: Site):
    for distribution in ("one-dist", "two-dist"):
        module = distribution.replace("-", "_")
        source = f"    from opencode_mcp import hookimpl\n{hook('changed', 'after', 'raise OSError')}"
        site.install(distribution, version="0.7", plugins={"same": module}, modules={module: source})
    async with healthy(command):
        ended = await run(command, site, "instances", "--json")
    assert states(json.loads(ended.out)) == {"laptop-shop": "online"}
    for distribution in ("one-dist", "two-dist"):
        the_one(ended.err.splitlines(), f"Plugin same (from {distribution} 0.7)", "uninstall")


# Hooks that fail when they are called.


async def test_hooks_that_raise_are_told_once_and_stop_nobody(command: Command, site: Site):
    hooks = {"auth": "endpoint", "changed": "before, after", "audit": "action"}
    for name, arguments in hooks.items():
        install_hooks(site, f"raising-{name}", hook(name, arguments, "raise OSError('no disk')"))
    async with healthy(command), serving(command, PYTHONPATH=str(site.path)) as wire:
        await wire.initialize()
        for _ in range(3):
            sent = await wire.tool("send", instance="laptop-shop", message="hello")
            assert sent["structuredContent"]["state"] == "done"
        overview = await until_overview(wire, lambda seen: len(seen["notes"]) == len(hooks))
        assert states(overview) == {"laptop-shop": "online"}
        await leave(wire)
    for name in hooks:
        who = f"raising-{name} (from raising-{name}-dist 0.7)"
        the_one(overview["notes"], who, f"opencode_mcp_instance_{name} failed with OSError", "uninstall it")
        the_one(messages(wire), who, f"opencode_mcp_instance_{name} failed with OSError", "uninstall it")
    assert len(messages(wire)) == len(hooks)


async def test_a_policy_that_raises_keeps_out_what_it_fails_on_and_nothing_else(command: Command, site: Site):
    body = "1 / (endpoint.name == 'laptop-shop')"
    install_hooks(site, "raising-admit", hook("admit", "endpoint", body))
    async with healthy(command), registered(command, FakeOpenCode(), "kept-out"):
        ended = await run(command, site, "instances", "--json")
    assert ended.code == 0
    overview = json.loads(ended.out)
    assert states(overview) == {"laptop-shop": "online"}
    (note,) = overview["notes"]
    for text in (note, "\n".join(message_lines(ended.err))):
        who = "lugin raising-admit (from raising-admit-dist 0.7)"
        the_one(text.splitlines(), who, "ZeroDivisionError", "uninstall it")


async def test_hooks_that_hang_are_told_once_and_hold_up_nobody_for_long(command: Command, tmp_path: Path):
    async def hanging(**hooks: str) -> None:
        site = Site(tmp_path / "-".join(hooks))
        for name, arguments in hooks.items():
            install_hooks(site, f"hanging-{name}", hook(name, arguments, HANGS))
        async with serving(command, PYTHONPATH=str(site.path)) as wire:
            await wire.initialize()
            await until_overview(wire, lambda seen: states(seen) == {"laptop-shop": "online"})
            sent = await wire.tool("send", instance="laptop-shop", message="hello", session="new")
            assert sent["structuredContent"]["state"] == "done"
            overview = await until_overview(wire, lambda seen: len(seen["notes"]) == len(hooks))
            assert states(overview) == {"laptop-shop": "online"}
            await leave(wire)
        assert_told(wire, overview, hooks)

    async def hanging_policy() -> None:
        site = Site(tmp_path / "admit")
        install_hooks(site, "hanging-admit", hook("admit", "endpoint", HANGS))
        async with serving(command, PYTHONPATH=str(site.path)) as wire:
            await wire.initialize()
            overview = await until_overview(wire, lambda seen: "hanging-admit" in "".join(seen["notes"]))
            assert states(overview) == {}  # a policy that fails lets nobody in
            await leave(wire)
        assert_told(wire, overview, ["admit"])

    def assert_told(wire: Wire, overview: dict[str, Any], hooks: Iterable[str]) -> None:
        for name in hooks:
            who = f"lugin hanging-{name} (from hanging-{name}-dist 0.7)"
            what = f"hook opencode_mcp_instance_{name} has not returned within"
            the_one(overview["notes"], who, what, "uninstall it")
            the_one(messages(wire), who, what, "uninstall it")
        assert len(messages(wire)) == len(list(hooks))

    async with healthy(command), anyio.create_task_group() as tasks:
        tasks.start_soon(partial(hanging, changed="before, after", audit="action"))
        tasks.start_soon(partial(hanging, auth="endpoint"))
        tasks.start_soon(hanging_policy)


async def test_what_plugins_print_reaches_no_client(command: Command, site: Site):
    install_hooks(site, "prints", hook("changed", "after", "print('hello from a hook')"))
    async with healthy(command), serving(command, PYTHONPATH=str(site.path)) as wire:
        await wire.initialize()
        await until_overview(wire, lambda seen: states(seen) == {"laptop-shop": "online"})
        await leave(wire)  # there was no junk
    assert "hello from a hook" in wire.err.decode()


# Transports that fail at their work.

DISCOVERS = """
    class Broken(Nothing):
        async def discover(self):
            {body}


    @asynccontextmanager
    async def open_broken(settings):
        yield Broken()


    @hookimpl
    def opencode_mcp_transports():
        return describe(open=open_broken)


    def at(number, **more):
        url = f"http://127.{{1 + number // 60000}}.{{number // 250 % 240}}.{{1 + number % 250}}:9"
        return Endpoint(**{{"id": str(number), "name": f"nobody-{{number}}", "url": url, **more}})
"""


def discovers(body: str) -> str:
    return DISCOVERS.format(body=body)


async def test_transports_that_publish_nonsense_or_nothing_are_noted_and_leave_the_others_alone(
    command: Command, site: Site
):
    broken = {
        "duplicates": ("return [at(1), at(1, name='again'), at(2)]", "the same id", ["nobody-1", "nobody-2"]),
        "strangers": ("return [at(3), None, 'http://x']", "else than sound endpoints", ["nobody-3"]),
        "raises": ("raise OSError('no disk')", "It failed with OSError", []),
        "no-list": ("return 7", "It failed with TypeError", []),
        "endless": ("return await self.discover()", "It failed with RecursionError", []),
        "exits": ("raise SystemExit(0)", "It failed with SystemExit", []),
        "cancels": ("raise anyio.get_cancelled_exc_class()", "It failed with StrayCancellationError", []),
    }
    for name, (body, _, _) in broken.items():
        install_transport(site, name, discovers(body))
    async with healthy(command):
        ended = await run(command, site, "instances", "--json", TRANSPORT=f"local-relay,{','.join(broken)}")
    assert ended.code == 0
    overview = json.loads(ended.out)
    expected = {"laptop-shop", *(name for *_, names in broken.values() for name in names)}
    assert set(states(overview)) == expected
    assert states(overview)["laptop-shop"] == "online"
    lines = message_lines(ended.err)
    for name, (_, why, _) in broken.items():
        mend = packages.update(f"{name}-dist")
        the_one(overview["notes"], f"transport {name} (from {name}-dist 0.7)", why, mend)
        the_one(lines, f"Transport {name} (from {name}-dist 0.7)", why, mend)
    assert len(overview["notes"]) == len(lines) == len(broken)


@pytest.mark.parametrize("error", ["OSError", "SystemExit", "anyio.get_cancelled_exc_class()"])
async def test_a_transport_that_opens_no_route_is_told_once_and_its_instance_says_so(
    command: Command, site: Site, error: str
):
    source = discovers("return [at(1)]\n\n        def connect(self, endpoint):\n            raise " + error)
    install_transport(site, "routeless", source)
    variables = {"TRANSPORT": "routeless,local-relay", "PYTHONPATH": str(site.path)}
    async with healthy(command), serving(command, **variables) as wire:
        await wire.initialize()
        wanted = {"laptop-shop": "online", "nobody-1": "offline"}
        overview = await until_overview(wire, lambda seen: states(seen) == wanted)
        await leave(wire)
    assert "Its transport failed with" in overview["instances"][1]["detail"]
    wanted = (
        "Transport routeless (from routeless",
        "failed to reach nobody-1 with",
        "Update it: ",
    )
    the_one(messages(wire), *wanted)
    assert len(messages(wire)) == 1


async def test_of_a_million_endpoints_five_thousand_count_and_the_others_work(command: Command, site: Site):
    body = "return [at(number) for number in range(5_100)] * 200"
    install_transport(site, "million", discovers(body), distribution="The-Million")
    variables = {"TRANSPORT": "local-relay,million", "PYTHONPATH": str(site.path)}
    async with healthy(command), serving(command, **variables) as wire:
        await wire.initialize()
        overview = await until_overview(
            wire,
            lambda seen: len(seen["instances"]) > 5_000 and states(seen)["laptop-shop"] == "online",
            pause=1,
        )
        sent = await wire.tool("send", instance="laptop-shop", message="hello")
        assert sent["structuredContent"]["text"] == "You said: hello"
        await leave(wire)
    assert len(overview["instances"]) == 5_001
    parts = ("It publishes 1020000 endpoints; only the first 5000 count", packages.update("The-Million"))
    the_one(overview["notes"], "transport million (from The-Million 0.7)", *parts)
    the_one(messages(wire), "Transport million (from The-Million 0.7)", *parts)
    assert len(messages(wire)) == 1


async def test_a_transport_that_fails_again_and_again_or_never_returns_is_told_once_and_holds_up_nobody(
    command: Command, tmp_path: Path
):
    looks = tmp_path / "looks"
    every_second_time = f"""
            with open({str(looks)!r}, "a") as file:
                file.write("x")
            if len(Path({str(looks)!r}).read_text()) % 2 == 0:
                raise OSError("no disk")
            return [at(1)]"""
    blocks_once = """
            mark = Path(__file__).with_suffix(".mark")
            if not mark.exists():
                mark.touch()
                time.sleep(8)
            return []"""

    async def told_once(name: str, body: str, then: Callable[[Wire], Awaitable[None]], *told: str) -> None:
        site = Site(tmp_path / name)
        install_transport(site, name, discovers(body))
        variables = {"TRANSPORT": f"{name},local-relay", "DISCOVERY_INTERVAL_MS": "100"}
        async with serving(command, **variables, PYTHONPATH=str(site.path)) as wire:
            await wire.initialize()
            await until_overview(wire, lambda seen: states(seen).get("laptop-shop") == "online")
            sent = await wire.tool("send", instance="laptop-shop", message="hello", session="new")
            assert sent["structuredContent"]["state"] == "done"
            await then(wire)
            await leave(wire)
        assert len(messages(wire)) == 1
        the_one(messages(wire), *told)

    async def noted(name: str, why: str, wire: Wire) -> dict[str, str]:
        overview = await until_overview(wire, lambda seen: why in "".join(seen["notes"]))
        (note,) = overview["notes"]
        the_one([note], f"transport {name} (from {name}-dist 0.7)", why, packages.update(f"{name}-dist"))
        assert states(overview)["laptop-shop"] == "online"
        return states(overview)

    async def fails_again_and_again(wire: Wire) -> None:
        assert "nobody-1" in await noted("flaky", "It failed with OSError", wire)  # the last set is kept
        await until(lambda: len(looks.read_text()) >= 5, seconds=60)

    async def never_returns(wire: Wire) -> None:
        await noted("hangs", "It has been starting for", wire)

    async def went_on(wire: Wire) -> None:
        await until_overview(wire, lambda seen: seen["notes"] == [])

    async with healthy(command), anyio.create_task_group() as tasks:
        for name, body, then, why in (
            ("flaky", every_second_time, fails_again_and_again, "It failed with OSError"),
            ("hangs", "await anyio.sleep_forever()", never_returns, "It has been starting for"),
        ):
            told = (f"Transport {name} (from {name}-dist 0.7)", why, packages.update(f"{name}-dist"))
            tasks.start_soon(told_once, name, body, then, *told)
        told = ("Transport blocks-dist 0.7 holds it up", "update that package", "transport_blocks.py")
        tasks.start_soon(told_once, "blocks", blocks_once, went_on, *told)


# Words of this file.


async def until_overview(
    wire: Wire, condition: Callable[[dict[str, Any]], Any], *, pause: float = 0.1
) -> dict[str, Any]:
    """Ask for the instances until they are as wanted, for at most a minute."""
    seen: dict[str, Any] = {}
    with anyio.move_on_after(60):
        while True:
            seen = (await wire.tool("instances"))["structuredContent"]
            if condition(seen):
                return seen
            await anyio.sleep(pause)
    raise AssertionError(f"It did not come true. {str(seen)[:2000]} {wire.err.decode()}")


async def leave(wire: Wire) -> None:
    """Check that the server ends by itself when its client goes, and that its stdout was clean."""
    await wire.close_stdin()
    assert await wire.exit_code() == 0
    assert wire.junk == []


def messages(wire: Wire) -> list[str]:
    return message_lines(wire.err.decode())


def message_lines(err: str) -> list[str]:
    """Return what was logged, without tracebacks: their lines are indented."""
    return [line for line in err.splitlines() if not line.startswith(" ")]
