"""What a machine of the tailnet serves: the web server and the forwarding of tailscaled, in this process.

Written after what `ipn/ipnlocal/serve.go` of tailscaled 1.103 does. Not here: TLS, files, Funnel, Services,
and upgrades such as WebSocket.
"""

import contextlib
import posixpath
import re
from collections.abc import Callable
from typing import Literal
from urllib.parse import urlsplit

from support.fake_tailscaled_serve import ServeConfigs
from support.fake_tailscaled_tailnet import SUFFIX, Row
from support.fake_tailscaled_wire import (
    TEXT,
    Answer,
    GoneError,
    Request,
    Stream,
    StreamServer,
    chunk,
    connect,
    first_of,
    head,
    pump,
    read_request,
    text,
)

Place = tuple[str, int] | StreamServer | Literal["refuse", "hang"]
"""Where a connection leads: to a port of this host, to a server in this process, or nowhere."""

_NO_BODY = (204, 304)
_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
_OURS_TO_SAY = re.compile(
    r"forwarded|x-forwarded-(for|host|proto)"
    r"|tailscale-(user-login|user-name|user-profile-pic|funnel-request|headers-info|app-capabilities)"
)


class ServedWeb:
    """The ports of a machine that has a serve config."""

    def __init__(
        self,
        config: ServeConfigs | Row,
        *,
        suffix: str = SUFFIX,
        tun: bool = True,
        profile: Callable[[str], Row | None] = lambda _: None,
    ) -> None:
        """Serve what a config says, as it is at each request.

        Args:
            config: As it was announced.
            suffix: Of the names in the tailnet.
            tun: Without it, what is not configured reaches the same port of this host.
            profile: Finds the user at an address; None for nobody, or a machine with tags.
        """
        self.configs = config if isinstance(config, ServeConfigs) else ServeConfigs(config)
        self.suffix = suffix
        self.tun = tun
        self.asked = 0
        self._profile = profile

    def at(self, port: int, source: str = "100.64.9.9") -> Place:
        """Find out where a connection to a port leads.

        Args:
            port: The port.
            source: The address it comes from.
        """
        found = self.configs.port(port)
        if found is None:
            return "refuse" if self.tun else ("127.0.0.1", port)
        if found.get("HTTP"):

            async def serve(stream: Stream) -> None:
                await self._serve(stream, port, source)

            return serve
        if target := found.get("TCPForward"):
            host, _, forwarded = target.rpartition(":")

            async def forward(stream: Stream) -> None:
                with contextlib.suppress(OSError):
                    backend = await connect(host, int(forwarded))
                    try:
                        await pump(stream, backend)
                    finally:
                        await backend.close()

            return forward
        return "refuse"

    async def _serve(self, stream: Stream, port: int, source: str) -> None:
        while True:
            request = await read_request(stream)
            self.asked += 1
            await self._answer(stream, request, port, source)
            if request.headers.get("connection", "").lower() == "close":
                return

    async def _answer(self, stream: Stream, request: Request, port: int, source: str) -> None:
        path = request.path
        mount = _mount(self.configs.web(f"{self._host(request)}:{port}") or {}, path)
        if mount is None:
            return await self._say(stream, request, text(404, "404 page not found"))
        at, handler = mount
        if said := handler.get("Text"):
            return await self._say(stream, request, Answer(200, said.encode(), TEXT))
        if target := handler.get("Redirect"):
            status, url = re.fullmatch(r"(?:(3\d\d):)?(.*)", target, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess] - it matches any text
            url = url.replace("${HOST}", request.headers.get("host", ""))
            url = url.replace("${REQUEST_URI}", request.target)
            return await self._say(stream, request, Answer(int(status or 302), headers={"location": url}))
        if not (target := handler.get("Proxy")):
            return await self._say(stream, request, text(500, "empty handler"))
        raw = urlsplit(request.target).path
        prefix = at.removesuffix("/") if path != "/" else ""
        if not raw.startswith(prefix):
            return await self._say(stream, request, text(404, "404 page not found"))
        return await self._proxy(stream, request, _expanded(target), raw[len(prefix) :], source)

    async def _say(self, stream: Stream, request: Request, answer: Answer) -> None:
        await stream.send(answer.encoded(bodiless=request.method == "HEAD"))

    def _host(self, request: Request) -> str:
        host = request.headers.get("host", "")
        if (parted := re.fullmatch(r"\[?([^\]]*?)\]?:(\d*)", host)) and (":" not in parted[1] or "[" in host):
            host = parted[1]
        return host if host.endswith(f".{self.suffix}") else f"{host}.{self.suffix}"

    async def _proxy(self, stream: Stream, request: Request, url: str, path: str, source: str) -> None:
        target = urlsplit(url)
        try:
            backend = await connect(target.hostname or "", target.port or 80)
        except OSError:
            return await self._say(stream, request, Answer(502))
        passed = False

        async def pass_on() -> None:
            nonlocal passed
            await backend.send(self._rewritten(request, target.path, path, source))
            await _pass_answer(backend, stream, bodiless=request.method == "HEAD")
            passed = True

        try:
            await first_of(pass_on(), stream.gone())
        finally:
            await backend.close()
        if not passed:
            raise GoneError
        return None

    def _rewritten(self, request: Request, base: str, path: str, source: str) -> bytes:
        """Return the bytes of a request as the backend sees it."""
        whole = f"{base.rstrip('/')}/{path.lstrip('/')}" if path or not base else base
        query = urlsplit(request.target).query
        kept = {
            name: value
            for name, value in request.headers.items()
            if name not in _HOP_BY_HOP and not _OURS_TO_SAY.fullmatch(name) and name != "content-length"
        }
        kept |= {"connection": "close", "x-forwarded-for": source}
        kept["x-forwarded-host"] = request.headers.get("host", "")
        if profile := self._profile(source):
            kept["tailscale-user-login"] = _header(profile["LoginName"])
            kept["tailscale-user-name"] = _header(profile["DisplayName"])
            kept["tailscale-user-profile-pic"] = profile.get("ProfilePicURL", "")
            kept["tailscale-headers-info"] = "https://tailscale.com/s/serve-headers"
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            kept["content-length"] = str(len(request.body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
        first = f"{request.method} {whole}{f'?{query}' if query else ''} HTTP/1.1\r\n"
        return f"{first}{lines}\r\n".encode("latin-1") + request.body


async def _pass_answer(backend: Stream, stream: Stream, *, bodiless: bool) -> None:
    """Pass an answer on, each piece of it at once."""
    status = 100
    while status < 200 and status != 101:
        first, *lines = (await backend.until(b"\r\n\r\n"))[:-4].split(b"\r\n")
        status = int(first.split()[1])
    named = [(line.partition(b":")[0].decode("latin-1").lower(), line) for line in lines]
    values = {name: line.partition(b":")[2].decode("latin-1").strip() for name, line in named}
    kept = [line for name, line in named if name not in _HOP_BY_HOP]
    bodiless = bodiless or status in _NO_BODY
    chunked = not bodiless and "content-length" not in values
    if chunked:
        kept.append(b"transfer-encoding: chunked")
    await stream.send(b"\r\n".join([head(status, {}).split(b"\r\n")[0], *kept, b"", b""]))
    if bodiless:
        return
    if not chunked:
        await _pass_bytes(backend, stream, int(values["content-length"]))
    elif "chunked" in values.get("transfer-encoding", ""):
        while length := int((await backend.until(b"\r\n")).split(b";")[0], 16):
            await _pass_bytes(backend, stream, length, chunked=True)
            await backend.exactly(2)
        await stream.send(chunk(b""))
    else:
        while piece := await backend.some():
            await stream.send(chunk(piece))
        await stream.send(chunk(b""))


async def _pass_bytes(backend: Stream, stream: Stream, count: int, *, chunked: bool = False) -> None:
    while count:
        piece = await backend.some(count)
        if not piece:
            raise GoneError
        count -= len(piece)
        await stream.send(chunk(piece) if chunked else piece)


def _mount(handlers: Row, path: str) -> tuple[str, Row] | None:
    """Find the longest mount that a path is under, and what is mounted there."""
    if path in handlers:
        return path, handlers[path]
    if not path.startswith("/"):
        return None
    clean = f"/{posixpath.normpath(path).lstrip('/')}"
    while True:
        for at in (f"{clean}/", clean):
            if at in handlers:
                return at, handlers[at]
        if clean == "/":
            return None
        clean = posixpath.dirname(clean)


def _expanded(target: str) -> str:
    """Return the URL that a `Proxy` is short for."""
    if target.startswith(("http://", "https://")):
        return target
    return f"http://127.0.0.1:{target}" if target.isdecimal() else f"http://{target}"


def _header(value: str) -> str:
    """Return a value as a header may hold it."""
    if value.isascii():
        return value
    return f"=?utf-8?q?{''.join(f'={byte:02x}' for byte in value.encode())}?="
