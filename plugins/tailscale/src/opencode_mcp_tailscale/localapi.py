"""tailscaled's LocalAPI: HTTP over a socket of this machine.

After the source of Tailscale (`ipn/localapi`); Tailscale calls it mostly stable and promises nothing, so what
is not understood is left out rather than failed at.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import anyio
import httpcore2
import httpx2

from opencode_mcp import TransportError, clean_line
from opencode_mcp_tailscale.bus import Bus
from opencode_mcp_tailscale.daemon import Daemon, find_daemon
from opencode_mcp_tailscale.exchange import Exchange
from opencode_mcp_tailscale.loose import mapping, parsed, text
from opencode_mcp_tailscale.settings import TailscaleSettings
from opencode_mcp_tailscale.status import Status, Who
from opencode_mcp_tailscale.through import Backend, Through

HOST = "local-tailscaled.sock"
_PREFIX = "/localapi/v0/"
_BASE = f"http://{HOST}{_PREFIX}"
_SECONDS = 10.0
_CONNECT_SECONDS = 1.0
_DIALLED, _NOT_FOUND, _STALE = 101, 404, 412
_MOST_BYTES = 64 * 1024 * 1024
_MOST_WORDS = 64 * 1024
_WATCHED = 2 | 4096 | 32768
"""Asks for the session id, and for what changes of peers in the words of daemons before and after 1.100."""


class LocalApiError(TransportError):
    """tailscaled refused a request.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ConflictError(LocalApiError):
    """Somebody else changed the serve config meanwhile."""


class RefusedError(httpcore2.ConnectError):
    """A machine answers, and accepts no connections at a port."""


class LocalApi(Backend):
    """A client of tailscaled; as a network backend it opens its connections.

    Every request opens one of its own, so that a tailscaled that was started anew makes no difference.

    Args:
        settings: Say where tailscaled is.
    """

    def __init__(self, settings: TailscaleSettings) -> None:
        self._settings = settings
        self._daemon: Daemon | None = None
        self._client = httpx2.AsyncClient(
            base_url=_BASE,
            transport=Through(self),
            timeout=None,  # every request has one bound over all its steps instead
            trust_env=False,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.move_on_after(1, shield=True):
            await self._client.aclose()

    async def status(self, *, peers: bool = True) -> Status:
        """Return who and what is on the tailnet.

        Args:
            peers: Whether the other machines are wanted; with thousands they are megabytes.

        Raises:
            TransportError: tailscaled cannot be asked.
        """
        async with self._asking("GET", "status", params={} if peers else {"peers": "false"}) as response:
            return Status.read(await _body(response))

    async def shields_up(self) -> bool:
        """Whether this machine accepts no connections from the tailnet.

        Raises:
            TransportError: tailscaled cannot be asked.
        """
        async with self._asking("GET", "prefs") as response:
            return _mapping(await _body(response)).get("ShieldsUp") is True

    async def whois(self, address: str) -> Who | None:
        """Return who has an address of the tailnet, `ip:port`; None if nobody.

        Raises:
            TransportError: tailscaled cannot be asked.
        """
        try:
            async with self._asking("GET", "whois", params={"addr": address}) as response:
                return Who.read(await _body(response))
        except LocalApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def serve_config(self) -> tuple[dict[str, Any], str]:
        """Return what this machine serves to the tailnet, and the tag that a change of it has to name.

        Raises:
            TransportError: tailscaled cannot be asked.
        """
        async with self._asking("GET", "serve-config") as response:
            return _mapping(await _body(response)), response.headers.get("etag", "")

    async def set_serve_config(self, config: Mapping[str, Any], tag: str) -> None:
        """Replace what this machine serves to the tailnet, if it is still what `tag` names.

        Raises:
            ConflictError: It is something else by now.
            LocalApiError: tailscaled does not take it; with status 403, not from this user.
            TransportError: tailscaled cannot be asked.
        """
        # An empty If-Match would replace whatever is there.
        headers = {"If-Match": tag or "none", "Content-Type": "application/json"}
        async with self._asking("POST", "serve-config", headers=headers, content=json.dumps(config)):
            pass

    @asynccontextmanager
    async def watch(self) -> AsyncGenerator[Bus]:
        """Follow what changes, for as long as the context is entered.

        Raises:
            TransportError: On entering, if tailscaled cannot be asked.
        """
        with anyio.CancelScope() as opening:
            opening.deadline = anyio.current_time() + _SECONDS
            async with self._sent("GET", "watch-ipn-bus", params={"mask": str(_WATCHED)}) as response:
                bus = Bus(response.aiter_raw())
                with _explained():
                    await bus.open()
                opening.deadline = float("inf")
                yield bus
        if opening.cancelled_caught:
            raise TransportError(f"tailscaled at {self._daemon} does not say what changes.")

    async def dial(self, host: str, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Open a connection to a machine of the tailnet, through tailscaled.

        Args:
            host: Its address.
            port: Its port.
            timeout: How many seconds it may take, from when tailscaled was asked for it.

        Raises:
            RefusedError: That machine accepts none at this port.
            httpcore2.ConnectError: tailscaled cannot reach it, or cannot be asked.
            httpcore2.ConnectTimeout: Nobody answers.
        """
        stream = dialled = None
        try:
            daemon = await self._found()
            stream = await daemon.connect(_SECONDS if timeout is None else max(timeout, _CONNECT_SECONDS))
            exchange = Exchange(stream, timeout)
            status, headers = await exchange.begin("POST", f"{_PREFIX}dial", _dial(daemon, host, port))
            if status == _DIALLED:
                dialled = exchange.upgraded
                return dialled
            refusal = _refusal(status, headers, await exchange.body(_MOST_WORDS), host)
        except httpcore2.TimeoutException:
            raise httpcore2.ConnectTimeout(f"{host} does not answer.") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, TransportError) as error:
            self._daemon = None  # it may be elsewhere by now
            raise httpcore2.ConnectError(f"tailscaled cannot be asked to connect: {error}") from None
        finally:
            if stream is not None and dialled is None:
                with anyio.move_on_after(1, shield=True):
                    await stream.aclose()
        raise refusal

    async def elsewhere(self) -> bool:
        """Whether tailscaled was seen in another network namespace, when it was found.

        Raises:
            TransportError: It is nowhere.
        """
        return (await self._found()).elsewhere

    async def open(self, host: str, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Open a connection to tailscaled, whatever the host; see `Backend`.

        Raises:
            TransportError: It is nowhere.
            httpcore2.ConnectError: It does not accept one.
        """
        return await (await self._found()).connect(timeout)

    async def _found(self) -> Daemon:
        if self._daemon is None:
            self._daemon = await find_daemon(self._settings)
        return self._daemon

    @asynccontextmanager
    async def _asking(self, method: str, path: str, **given: Any) -> AsyncGenerator[httpx2.Response]:
        try:
            with anyio.fail_after(_SECONDS):
                async with self._sent(method, path, **given) as response:
                    yield response
        except TimeoutError:
            raise TransportError(
                f"tailscaled at {self._daemon} did not answer within {_SECONDS:.0f} s ({path})."
            ) from None

    @asynccontextmanager
    async def _sent(self, method: str, path: str, **given: Any) -> AsyncGenerator[httpx2.Response]:
        daemon = await self._found()
        headers = {"Accept-Encoding": "identity", **daemon.headers, **given.pop("headers", {})}
        request = self._client.build_request(method, path, headers=headers, **given)
        with _explained():
            try:
                response = await self._client.send(request, stream=True)
            except httpx2.ConnectError:
                self._daemon = None  # it may be elsewhere by now
                await self._found()  # which says what was tried
                raise
            try:
                await _check(response, path)
                yield response
            finally:
                with anyio.move_on_after(1, shield=True):
                    await response.aclose()


class Dialling(Backend):
    """Opens connections to machines of the tailnet through tailscaled.

    It needs neither routes nor names: for tailscaleds in user space, in containers, in other namespaces.

    Args:
        api: The tailscaled.
    """

    def __init__(self, api: LocalApi) -> None:
        self._api = api

    async def open(self, host: str, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        """Open a connection; see `LocalApi.dial` for the errors."""
        return await self._api.dial(host, port, timeout)


def _dial(daemon: Daemon, host: str, port: int) -> Mapping[str, str]:
    return {
        "Host": HOST,
        "Connection": "upgrade",
        "Upgrade": "ts-dial",
        "Dial-Host": host,
        "Dial-Port": str(port),
        "Dial-Network": "tcp",
        "Content-Length": "0",
        **daemon.headers,
    }


def _refusal(status: int, headers: Mapping[bytes, bytes], body: bytes, host: str) -> httpcore2.ConnectError:
    if headers.get(b"dial-self") == b"true":
        return httpcore2.ConnectError(f"{host} is not on the tailnet.")
    if b"refused" in body or b"reset" in body:
        return RefusedError(f"{host} accepts no connections there.")
    return httpcore2.ConnectError(f"tailscaled cannot connect to {host}: HTTP status {status}.")


async def _check(response: httpx2.Response, path: str) -> None:
    if response.is_success:
        return
    status = response.status_code
    why = _words(await _body(response))
    if status == _STALE:
        raise ConflictError(
            "Somebody else changes the serve config of this machine at the same time.", status
        )
    raise LocalApiError(
        f"tailscaled answered {path} with HTTP status {status}{f': {why}' if why else ''}.", status
    )


async def _body(response: httpx2.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_raw():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise TransportError(f"tailscaled answers with more than {_MOST_BYTES >> 20} MiB.")
    return b"".join(parts)


def _words(body: bytes) -> str:
    """What an error says: text, or JSON with it in `error`, however that is written."""
    words = body[:4096].decode(errors="replace")
    told = mapping(parsed(words))
    error = next((value for key, value in told.items() if key.lower() == "error"), "")
    return clean_line(text(error) or words, 300).rstrip(".")


def _mapping(body: bytes) -> dict[str, Any]:
    found = parsed(body)
    if found is None and body.strip() != b"null":
        raise TransportError("tailscaled answers with something else than expected.")
    return mapping(found)


@contextmanager
def _explained() -> Any:
    try:
        yield
    except httpx2.HTTPError as error:
        raise TransportError(f"tailscaled ended the connection: {clean_line(str(error), 200)}") from None
