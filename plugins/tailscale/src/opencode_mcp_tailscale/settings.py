"""The environment variables of tailscale."""

import re
from functools import cached_property

from pydantic import field_validator

from opencode_mcp import Settings, variable
from opencode_mcp_tailscale.status import login_key

INDEX_PORT = 14_096
_HIGHEST_PORT = 65_535
_FUNNEL_PORTS = (443, 8443, 10_000)
"""Those that Funnel opens to the whole internet."""
_MOST_PORTS = 16
_TAG = re.compile(r"tag:[A-Za-z][A-Za-z0-9-]{0,62}")


class TailscaleSettings(Settings):
    """What tailscale reads from the environment."""

    socket: str = variable(
        "TAILSCALE_SOCKET",
        "",
        takes="the path of a Unix socket",
        about="Where tailscaled's LocalAPI is. Default: `TS_SOCKET`, then the usual places of the platform.",
    )
    container_socket: str = variable(
        "TS_SOCKET",
        "",
        takes="the path of a Unix socket",
        about="The same, by the name that Tailscale's container image knows; `TAILSCALE_SOCKET` comes first.",
    )
    index_port: int = variable(
        "TAILSCALE_INDEX_PORT",
        INDEX_PORT,
        takes="a port from 1 to 65535, but 443, 8443 and 10000",
        about="The port on the tailnet at which a machine tells which instances it has. It must be the same "
        "on all machines.",
        ge=1,
        le=_HIGHEST_PORT,
    )
    ports: tuple[int, ...] = variable(
        "TAILSCALE_PORTS",
        (4096,),
        takes=f"up to {_MOST_PORTS} ports from 1 to 65535, with commas between",
        about="At which ports an OpenCode is looked for on a machine that tells nothing at the index port, "
        "and on this one.",
    )
    users: tuple[str, ...] = variable(
        "TAILSCALE_USERS",
        (),
        takes="login names such as `ann@example.com`, with commas between",
        about="Whose machines count, and get `OPENCODE_SERVER_PASSWORD` if they ask for it. Default: those "
        "of the user whom this machine belongs to.",
    )
    tags: tuple[str, ...] = variable(
        "TAILSCALE_TAGS",
        (),
        takes="tags such as `tag:opencode`, with commas between",
        about="Which tagged machines count besides, and get the password too. Default: none.",
    )
    peers: tuple[str, ...] = variable(
        "TAILSCALE_PEERS",
        (),
        takes="machine names, whole MagicDNS names, Tailscale addresses or node ids, with commas between",
        about="Only these machines of those that count otherwise. Default: all.",
    )
    allow_shared: bool = variable(
        "TAILSCALE_ALLOW_SHARED",
        False,
        takes="1 or 0",
        about="List machines of other tailnets too that are shared with you. They get no password unless "
        "`TAILSCALE_USERS` names their owner.",
    )
    allow_users: tuple[str, ...] = variable(
        "TAILSCALE_ALLOW_USERS",
        (),
        takes="login names, tags, and capabilities such as `example.com/cap/opencode`, with commas between",
        about="Who is told at the index port of what this machine announces; everybody else gets 403 there. "
        "A capability counts if the tailnet's grants give it to the caller towards this machine. Unset or "
        "empty: everybody whom the tailnet's access rules let through.",
    )
    forget_after_ms: int = variable(
        "TAILSCALE_FORGET_AFTER_MS",
        600_000,
        takes="a whole number of milliseconds, 0 (never) or more",
        about="How long an instance must have failed without one success before it is listed no more; it is "
        "listed again once it answers. One that its machine no longer tells of goes at once.",
        ge=0,
        le=10**15,  # far beyond any life; keeps the arithmetic in floats
    )

    @field_validator("ports", "users", "tags", "peers", "allow_users", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        words = tuple(word for word in (one.strip() for one in value.split(",")) if word)
        if not words:
            raise ValueError("nothing in it")
        return tuple(dict.fromkeys(words))

    @field_validator("index_port")
    @classmethod
    def _is_private(cls, value: int) -> int:
        if value in _FUNNEL_PORTS:
            raise ValueError("Funnel opens it to the internet")
        return value

    @field_validator("ports")
    @classmethod
    def _are_ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) > _MOST_PORTS or not all(1 <= port <= _HIGHEST_PORT for port in value):
            raise ValueError("no ports")
        return value

    @field_validator("socket", "container_socket", "users", "peers")
    @classmethod
    def _are_words(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not all(map(str.isprintable, value)):
            raise ValueError("not printable")
        return value

    @field_validator("peers")
    @classmethod
    def _are_bare(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one.rstrip(".").lower() for one in value)

    @field_validator("tags")
    @classmethod
    def _are_tags(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_TAG.fullmatch, value)):
            raise ValueError("no tags")
        return value

    @field_validator("allow_users")
    @classmethod
    def _are_callers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not one.isprintable() or (one.startswith("tag:") and not _TAG.fullmatch(one)):
                raise ValueError("neither a login name nor a tag nor a capability")
        return value

    @cached_property
    def logins(self) -> frozenset[str]:
        """Whose machines count, in small letters."""
        return frozenset(map(login_key, self.users))

    @cached_property
    def tags_set(self) -> frozenset[str]:
        """The tags of machines that count."""
        return frozenset(self.tags)
