"""The serve config of a fake tailscaled, and the rules for changing it.

Written after what `ipn/ipnlocal/serve.go` of tailscaled 1.103 does; Funnel and Services are kept unchecked.
"""

import copy
import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from support.fake_tailscaled_tailnet import Row
from support.fake_tailscaled_wire import Answer, error_json, go_json, text

_PORT = {"HTTPS": bool, "HTTP": bool, "TCPForward": str, "TerminateTLS": str, "ProxyProtocol": int}
_MOUNT = {"Path": str, "Proxy": str, "Text": str, "AcceptAppCaps": list, "Redirect": str}
_ADMIN_ONLY = (
    "must be root, or be an operator and able to run 'sudo tailscale' to serve a path or Unix socket"
)
_ALLOWED_PORTS = 1 << 16


class RefusedError(Exception):
    """A config that is not accepted; carries the answer that says so."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.body.decode())
        self.answer = answer


class ServeConfigs:
    """The serve config of one machine.

    Attributes:
        config: What there is; None as long as nobody has ever set one.
    """

    def __init__(self, config: Row | None = None) -> None:
        self.config: Row | None = None
        self.written = b"null"
        if config is not None:
            self._keep(_decoded(config))

    @property
    def etag(self) -> str:
        """What `If-Match` has to say."""
        return hashlib.sha256(self.written).hexdigest()

    @property
    def sessions(self) -> set[str]:
        """The foreground sessions it has."""
        return set((self.config or {}).get("Foreground", ()))

    def replace(self, incoming: Any, if_match: str, living: Container[str]) -> set[str]:
        """Replace the whole; what Go has no field for is lost, and so are sessions that nobody watches.

        Args:
            incoming: The config, from JSON.
            if_match: The etag of what it shall replace; empty for whatever there is.
            living: The sessions with a watcher.

        Returns:
            The sessions that were lost by it.

        Raises:
            RefusedError: It is not accepted.
        """
        try:
            config = _decoded(incoming)
        except (TypeError, ValueError, AttributeError) as error:
            raise RefusedError(error_json(f"decoding config: json: cannot unmarshal: {error}")) from None
        if any(_needs_admin(each) for each in _layers(config)):
            raise RefusedError(text(401, _ADMIN_ONLY))
        if if_match and if_match != self.etag:
            raise RefusedError(text(412, "etag mismatch"))
        if self.config is not None and (fault := self._conflict(config)):
            raise RefusedError(error_json(f"updating config: {fault}"))
        before = self.sessions
        for session in [one for one in config.get("Foreground", ()) if one not in living]:
            del config["Foreground"][session]
        self._keep(config)
        return before - self.sessions

    def end(self, session: str) -> None:
        """Take the config of a session out."""
        if session in self.sessions:
            config = copy.deepcopy(self.config or {})
            del config["Foreground"][session]
            self._keep(config)

    def port(self, port: int) -> Row | None:
        """Find what a port does: foreground first."""
        layers = reversed(list(_layers(self.config or {})))
        return next((found for each in layers if (found := each.get("TCP", {}).get(str(port)))), None)

    def web(self, host_port: str) -> Row | None:
        """Find the mounts of a host and port, wherever the port itself is configured."""
        layers = reversed(list(_layers(self.config or {})))
        return next(
            (found["Handlers"] for each in layers if (found := each.get("Web", {}).get(host_port))), None
        )

    def _keep(self, config: Row) -> None:
        if not config.get("Foreground"):
            config.pop("Foreground", None)
        self.config = config
        self.written = go_json(config)

    def _conflict(self, incoming: Row) -> str | None:
        """Say what is wrong with a change; only ports count, and only those of sessions that are new."""
        existing = self.config or {}
        foreground = {port for one in existing.get("Foreground", {}).values() for port in one.get("TCP", {})}
        background = existing.get("TCP", {})
        for session, config in incoming.get("Foreground", {}).items():
            for port in config.get("TCP", {}) if session not in self.sessions else ():
                if port in foreground or port in background:
                    return f"listener already exists for port {port}"
        for port, handler in incoming.get("TCP", {}).items():
            if port in foreground:
                return f"foreground listener already exists for port {port}"
            if port in background and (now := _type(background[port])) != (then := _type(handler)):
                return f'want to serve "{then}", but port {port} is already serving "{now}"'
        return None


def _type(handler: Row) -> str:
    if handler.get("HTTP"):
        return "http"
    if handler.get("HTTPS"):
        return "https"
    return "tls-terminated-tcp" if handler.get("TerminateTLS") else "tcp"


def _layers(config: Row) -> Iterator[Row]:
    yield config
    yield from config.get("Foreground", {}).values()


def _needs_admin(config: Row) -> bool:
    mounts = [one for web in config.get("Web", {}).values() for one in (web["Handlers"] or {}).values()]
    targets = [one.get("TCPForward", "") for one in config.get("TCP", {}).values()]
    targets += [one.get("Proxy", "") for one in mounts]
    return any(one.get("Path") for one in mounts) or any(one.startswith("unix:") for one in targets)


def _decoded(config: Any, *, inner: bool = False) -> Row:
    """Keep of a config what Go has fields for, in Go's order, without what is empty."""
    config = config or {}
    if not isinstance(config, Mapping):
        raise TypeError("a config is an object")
    for port in config.get("TCP") or {}:
        if not 0 <= int(port) < _ALLOWED_PORTS:
            raise ValueError(f"{port} is no port")
    decoded: Row = {
        "TCP": _each(config.get("TCP"), lambda one: _only(one, _PORT)),
        "Web": _each(config.get("Web"), _web),
        "Services": _each(config.get("Services"), dict),
        "AllowFunnel": _each(config.get("AllowFunnel"), bool),
        "Foreground": {} if inner else _each(config.get("Foreground"), lambda one: _decoded(one, inner=True)),
    }
    return {name: value for name, value in decoded.items() if value}


def _web(config: Row) -> Row:
    return {"Handlers": _each(config.get("Handlers"), lambda one: _only(one, _MOUNT))}


def _each(values: Row | None, decode: Callable[[Any], Any]) -> Row:
    return {name: decode(value) for name, value in sorted((values or {}).items())}


def _only(values: Row, types: Mapping[str, type]) -> Row:
    kept = {name: values[name] for name in types if values.get(name)}
    for name, value in kept.items():
        if not isinstance(value, types[name]):
            raise TypeError(f"{name} is not of type {types[name].__name__}")
    return kept
