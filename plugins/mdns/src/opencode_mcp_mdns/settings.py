"""The environment variables of mdns."""

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from functools import cached_property

from pydantic import SecretStr, ValidationInfo, field_validator

from opencode_mcp import Settings, variable

_SERVICE_TYPE = re.compile(  # RFC 6335, section 5.1
    r"_(?=[a-z0-9-]*[a-z])(?!.*--)[a-z0-9](?:[a-z0-9-]{0,13}[a-z0-9])?\._tcp"
)
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_HIGHEST_PORT = 65_535
_SHORTEST_SECRET = 16


class MDnsSettings(Settings):
    """What mdns reads from the environment."""

    types: tuple[str, ...] = variable(
        "MDNS_TYPES",
        ("_opencode._tcp", "_http._tcp"),
        takes="DNS-SD service types such as `_opencode._tcp`, with commas between",
        about="Which services may be instances. Of `_http._tcp` only those called `opencode-<port>`, as "
        "`opencode serve --mdns` calls itself, are ever asked.",
    )
    interfaces: tuple[str, ...] = variable(
        "MDNS_INTERFACES",
        (),
        takes="names of network interfaces, or addresses of this machine, with commas between",
        about="On which networks instances are looked for and announced. Default: all but loopback. With one "
        "address and nothing else, and no other transport, OpenCode is made to listen on that address only.",
    )
    ports: tuple[str, ...] = variable(
        "MDNS_PORTS",
        ("1024-65535",),
        takes="ports from 1 to 65535 and ranges of them, with commas between",
        about="Which ports an advertised instance may have; others are never connected to.",
    )
    max_services: int = variable(
        "MDNS_MAX_SERVICES",
        256,
        takes="a whole number from 1 to 1000",
        about="How many advertised services are followed at most. At most a quarter as many instances are "
        "listed at one address.",
        ge=1,
        le=1_000,
    )
    forget_after_ms: int = variable(
        "MDNS_FORGET_AFTER_MS",
        600_000,
        takes="a whole number of milliseconds, 0 (never) or more",
        about="How long an instance must have failed without one success before it is listed no more; it is "
        "listed again once it answers. One that said goodbye and does not answer goes at once.",
        ge=0,
        le=10**15,  # far beyond any life; keeps the arithmetic in floats
    )
    credentials_for: tuple[str, ...] = variable(
        "MDNS_CREDENTIALS_FOR",
        (),
        takes="IP addresses, networks such as `192.168.1.0/24`, or host names, with commas between; no name "
        "that ends in `.local`",
        about="Which hosts get `OPENCODE_SERVER_PASSWORD` if they ask for it; without, only those that prove "
        "`MDNS_SECRET`. Names are looked up with this machine's resolver, never taken from an "
        "advertisement: anybody on the network can advertise any name.",
    )
    secret: SecretStr | None = variable(
        "MDNS_SECRET",
        None,
        takes=f"{_SHORTEST_SECRET} characters or more, for example from `openssl rand -base64 24`",
        about="A secret that your machines share. Instances announced with it prove that they are yours; the "
        "gateway marks them, and gives them the password if they ask for it.",
    )
    require_secret: bool = variable(
        "MDNS_REQUIRE_SECRET",
        False,
        takes="1 or 0; 1 only together with MDNS_SECRET",
        about="List only instances that prove `MDNS_SECRET`.",
    )
    publish_cwd: bool = variable(
        "MDNS_PUBLISH_CWD",
        False,
        takes="1 or 0",
        about="Announce the whole path of the project, not only its last folder. Everybody on the network "
        "can read it.",
    )

    @field_validator("types", "interfaces", "ports", "credentials_for", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        words = tuple(word for word in (one.strip() for one in value.split(",")) if word)
        if not words:
            raise ValueError("nothing in it")
        return words

    @field_validator("types")
    @classmethod
    def _are_types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        bare = tuple(one.lower().removesuffix(".").removesuffix(".local") for one in value)
        if not all(map(_SERVICE_TYPE.fullmatch, bare)):
            raise ValueError("no service type")
        return tuple(dict.fromkeys(bare))

    @field_validator("interfaces")
    @classmethod
    def _are_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(str.isprintable, value)):
            raise ValueError("not printable")
        return value

    @field_validator("ports")
    @classmethod
    def _are_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            ports = _range(one)
            if not ports or ports[0] < 1 or ports[-1] > _HIGHEST_PORT:
                raise ValueError("no ports")
        return value

    @field_validator("credentials_for")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if _network(one) is None and not _is_scoped(one) and not _is_name(one):
                raise ValueError("no host")
        return value

    @field_validator("secret")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        # What is advertised can be tried against guesses, by anybody and at leisure.
        if value is not None and len(value.get_secret_value()) < _SHORTEST_SECRET:
            raise ValueError("too short")
        return value

    @field_validator("require_secret")
    @classmethod
    def _has_secret(cls, value: bool, info: ValidationInfo) -> bool:
        if value and "secret" in info.data and info.data["secret"] is None:
            raise ValueError("no secret")
        return value

    @cached_property
    def port_ranges(self) -> Sequence[range]:
        """The ports that an instance may have."""
        return [_range(one) for one in self.ports]

    @cached_property
    def vouched_networks(self) -> Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The addresses and networks of MDNS_CREDENTIALS_FOR."""
        return [network for network in map(_network, self.credentials_for) if network is not None]

    @cached_property
    def vouched_names(self) -> Sequence[str]:
        """The host names of MDNS_CREDENTIALS_FOR."""
        return [one for one in self.credentials_for if _is_name(one)]

    @cached_property
    def vouched_scoped(self) -> Sequence[str]:
        """The addresses of MDNS_CREDENTIALS_FOR that say on which interface they are."""
        return [one for one in self.credentials_for if _is_scoped(one)]

    @cached_property
    def key(self) -> bytes | None:
        """The key made of the secret; None if there is none. It takes some 50 ms, once.

        So whoever tries guesses against what is advertised needs as long for each of them.
        """
        if self.secret is None:
            return None
        words = self.secret.get_secret_value().encode(errors="surrogatepass")
        return hashlib.scrypt(words, salt=b"opencode-mcp mdns", n=2**14, r=8, p=1, dklen=32)


def _range(text: str) -> range:
    """Return the ports that `4096` or `4000-5000` means; none if it means nothing."""
    found = _PORTS.fullmatch(text)
    if found is None:
        return range(0)
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return None if "%" in text else ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_scoped(text: str) -> bool:
    try:
        return "%" in text and str(ipaddress.IPv6Address(text)) == text
    except ValueError:
        return False


def _is_name(text: str) -> bool:
    """Whether it is a host name that not everybody may answer for; a number at its end is an address's."""
    last = text.lower().rstrip(".").rpartition(".")[2]
    return bool(_HOST_NAME.fullmatch(text)) and last != "local" and not last.isdecimal()
