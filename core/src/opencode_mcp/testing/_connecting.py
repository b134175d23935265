"""Standard tests of connecting: whom a route reaches, what it leaves open, and whom it does not reach."""

from contextlib import suppress

import anyio

from opencode_mcp.errors import CredentialsError, OpenCodeMCPError, TransportError
from opencode_mcp.model import Endpoint, Route
from opencode_mcp.opencode.http import Http
from opencode_mcp.testing import _serve
from opencode_mcp.testing._leftovers import Leftovers
from opencode_mcp.testing._trial import Trial, Watching, describe, fail, require
from opencode_mcp.testing.fake import FakeOpenCode
from opencode_mcp.transport import Transport

_PATH = "/global/health"
_EVENTS = "/global/event"


class ConnectingTests:
    """The part of `TransportSuite` about connecting."""

    async def test_connect_reaches_the_server(self, trial: Trial) -> None:
        """A request through the route comes to the server that was published, and to no other."""
        fakes = {key: await trial.publish(key=key) for key in ("one", "two")}
        async with trial.watching() as watching:
            await watching.until(lambda: len(watching.now) == 2, "Two are there, so both have to be found.")
            reached: list[FakeOpenCode] = []
            for endpoint in watching.now.values():
                for fake in fakes.values():
                    fake.requests.clear()
                await reach(trial, watching.transport, endpoint)
                reached += [fake for fake in fakes.values() if was_asked(fake)]
            require(
                len(reached) == 2 and reached[0] is not reached[1],
                "Two are there, and a request was sent through the route to each, but not each got its own. "
                "A route has to lead to the endpoint that `connect` was given.",
            )

    async def test_connect_follows_a_server_that_moved(self, trial: Trial) -> None:
        """Once a change is published, the route leads to where the server is now."""
        await trial.publish(name="before")
        async with trial.watching() as watching:
            await watching.until(lambda: len(watching.now) == 1, "One is there, so it has to be found.")
            moved = await trial.publish(name="after")

            async def reached() -> bool:
                try:
                    for endpoint in watching.now.values():
                        await ask(watching.transport, endpoint, trial.patience)
                except OpenCodeMCPError:
                    return False
                return was_asked(moved)

            with anyio.move_on_after(trial.patience):
                while not await reached():  # noqa: ASYNC110 - a server gives no notice of requests
                    await anyio.sleep(0.05)
                return
            fail(
                "It moved to another port, and a route still does not lead there. Publish the new url, and "
                f"let `connect` use what is known now. Now published: {watching.shown}."
            )

    async def test_a_route_carries_a_stream(self, trial: Trial) -> None:
        """Events come one by one, as they happen: core listens to a stream that never ends."""
        fake = await trial.publish()
        async with trial.watching() as watching:
            endpoint = await only(watching)
            try:
                with anyio.fail_after(trial.patience):
                    async with (
                        watching.transport.connect(endpoint) as route,
                        _client(route, trial) as http,
                        http.stream(_EVENTS) as events,
                    ):
                        await anext(events)
                        fake.emit("test.event", {})
                        await anext(events)
            except (OpenCodeMCPError, TimeoutError, StopAsyncIteration) as error:
                fail(
                    "A stream of events was opened through the route, and an event did not come through: "
                    f"{describe(error)} Pass on each piece of an answer as it comes, without a time limit."
                )

    async def test_a_route_closes_what_it_opened(self, trial: Trial) -> None:
        """No task, socket or file is left of a route that was left."""
        await trial.publish()
        async with trial.watching() as watching:
            endpoint = await only(watching)
            await reach(trial, watching.transport, endpoint)
            before = Leftovers()
            for _ in range(3):
                await reach(trial, watching.transport, endpoint)
            await trial.until(
                lambda: not before.now,
                lambda: (
                    f"Three routes were entered, used and left, but there is left: "
                    f"{', '.join(before.now)}. Close what `connect` opens as its context ends."
                ),
            )

    async def test_routes_do_not_depend_on_each_other(self, trial: Trial) -> None:
        """Core connects anew before it leaves an old route: that must not close the new one."""
        fake = await trial.publish()
        async with trial.watching() as watching:
            endpoint = await only(watching)
            connect = watching.transport.connect
            async with connect(endpoint) as staying, _client(staying, trial) as http:
                await http.get(_PATH)
                await reach(trial, watching.transport, endpoint)
                fake.requests.clear()
                try:
                    await http.get(_PATH)
                except Exception as error:
                    fail(
                        "Two routes to one endpoint were open, one was left, and the other works no more: "
                        f"{describe(error)} Give each route its own `Route.transport`."
                    )
                require(was_asked(fake), "Of two routes to one endpoint, one leads somewhere else.")

    async def test_an_unknown_endpoint_is_not_reached(self, trial: Trial) -> None:
        """An endpoint that was never found leads nowhere, least of all to another one's server.

        A transport that knows the way by itself raises `TransportError` on entering `connect`. One that goes
        straight to the endpoint's url, as the default does, need not look it up: then nothing listens at that
        url, and the first request raises.
        """
        fake = await trial.publish()
        async with trial.watching() as watching:
            await only(watching)
            with _serve.bind(trial.publisher.host) as nobody:  # it is not listened at
                port = nobody.getsockname()[1]
                unknown = Endpoint(
                    id="never-published", name="never-published", url=f"http://{trial.publisher.host}:{port}"
                )
                await _require_unreachable(trial, watching.transport, unknown, "was never published", fake)

    async def test_an_endpoint_that_is_gone_is_not_reached(self, trial: Trial) -> None:
        """An endpoint that was withdrawn leads nowhere: see `test_an_unknown_endpoint_is_not_reached`."""
        await trial.publish(key="one")
        async with trial.watching() as watching:
            gone = await only(watching)
            fake = await trial.publish(key="two")
            await watching.until(lambda: len(watching.now) == 2, "Two are there, so both have to be found.")
            await trial.withdraw("one")
            await watching.until(lambda: gone.id not in watching.now, "One is withdrawn, so it has to go.")
            await _require_unreachable(trial, watching.transport, gone, "is gone", fake)


async def only(watching: Watching) -> Endpoint:
    """Wait until just one is published, and return it."""
    await watching.until(lambda: len(watching.now) == 1, "One is there, so it has to be found.")
    [endpoint] = watching.now.values()
    return endpoint


async def reach(trial: Trial, transport: Transport, endpoint: Endpoint) -> Route:
    """Send a request to an endpoint that is there, through a route of its own; return that."""
    try:
        return await ask(transport, endpoint, trial.patience)
    except Exception as error:
        fail(
            f"{endpoint.name!r} is there and was found at {endpoint.url}, but a request to it raises "
            f"{describe(error)} A route has to lead to the server."
        )


async def ask(transport: Transport, endpoint: Endpoint, seconds: float) -> Route:
    """Send a request to an endpoint, through a route of its own, which is returned as it was.

    Raises:
        OpenCodeMCPError: It is not reached.
    """
    with anyio.fail_after(2 * seconds):
        async with transport.connect(endpoint) as route:
            async with Http(route, seconds=seconds, vouched=False) as http:
                with suppress(CredentialsError):  # then it was reached
                    await http.get(_PATH)
            return route


def was_asked(fake: FakeOpenCode) -> bool:
    """Whether a request came in."""
    return any(request.path == _PATH for request in fake.requests)


def _client(route: Route, trial: Trial) -> Http:
    return Http(route, seconds=trial.patience, vouched=False)


async def _require_unreachable(
    trial: Trial, transport: Transport, endpoint: Endpoint, why: str, other: FakeOpenCode
) -> None:
    other.requests.clear()
    entered = False
    try:
        with anyio.fail_after(2 * trial.patience):
            async with transport.connect(endpoint) as route:
                entered = True
                async with _client(route, trial) as http:
                    await http.get(_PATH)
    except TransportError:
        return
    except OpenCodeMCPError as error:
        if entered:
            return
        fail(
            f"`connect` to an endpoint that {why} raised {describe(error)} Raise TransportError on entering."
        )
    except TimeoutError:
        fail(f"`connect` to an endpoint that {why} never ends. Raise TransportError on entering, soon.")
    except Exception as error:
        where = "a request through its route" if entered else "entering `connect`"
        fail(
            f"The endpoint {why}, and {where} raised {describe(error)} Raise TransportError on entering, "
            "with a sentence for a person."
        )
    fail(
        f"The endpoint {why}, but a request to it was answered"
        f"{' by another endpoint' if was_asked(other) else ''}. Raise TransportError on entering `connect`."
    )
