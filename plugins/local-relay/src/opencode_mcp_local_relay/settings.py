"""The environment variables of local-relay."""

import shlex
from pathlib import Path

from pydantic import SecretStr, ValidationInfo, field_validator

from opencode_mcp import Settings, clean_line, variable

_MOST_DIGITS = 10
"""Of a user id, which has 32 bits."""


class LocalRelaySettings(Settings):
    """What local-relay reads from the environment."""

    ssh_cmd: SecretStr | None = variable(
        "RELAY_SSH_CMD",
        None,
        takes="a command line that behaves like ssh, quoted as in a shell",
        about="With it, instances are announced on another machine, the relay, through a tunnel, instead of "
        "on this one: `ssh me@relay`, or `gcloud compute ssh vm --zone=z --`. It must log in without asking "
        "anything; no shell of this machine runs it. Finding instances is not affected.",
    )
    registry_dir: Path = variable(
        "RELAY_REGISTRY_DIR",
        Path("/tmp/opencode-relay"),  # noqa: S108 - where the original tool looks; whose it is gets checked
        takes="the path of a directory, with RELAY_SSH_CMD an absolute one; `~` stands for your home",
        about="Where registration files are looked for, and written when an instance is announced; with "
        "RELAY_SSH_CMD, they are written in this directory of the relay, and `~` is your home there.",
        validate_default=True,
    )
    prune_after_ms: int = variable(
        "RELAY_PRUNE_AFTER_MS",
        600_000,
        takes="a whole number of milliseconds, 0 (never) or more",
        about="How long an instance must have failed without one success, its registration file "
        "unchanged, before that file is removed; 0 keeps every file.",
        ge=0,
        le=10**15,  # far beyond any life; keeps the arithmetic in floats
    )
    trust_any_owner: bool = variable(
        "RELAY_TRUST_ANY_OWNER",
        False,
        takes="1 or 0",
        about="Accept a registry directory and files that belong to other users or that everybody can "
        "write, as in containers. Whoever can write there decides where your messages go; the password goes "
        "only where both the directory and the file are yours or root's, and not everybody can write them.",
    )
    trust_users: tuple[int, ...] = variable(
        "RELAY_TRUST_USERS",
        (),
        takes="names or ids of users of this machine, with commas between",
        about="Whose programs may get the password besides yours and root's, if they listen at a registered "
        "port of this machine. Default: nobody's. Only Linux tells whose a port is; elsewhere it does not "
        "matter.",
    )
    local_service: bool = variable(
        "RELAY_LOCAL_SERVICE",
        True,
        takes="1 or 0",
        about="List the background service of OpenCode 2.x on this machine as well, without its being "
        "registered. Its address and its password come from the file in which OpenCode keeps them for you.",
    )

    @field_validator("trust_users", mode="before")
    @classmethod
    def _find(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        words = tuple(word for word in (one.strip() for one in value.split(",")) if word)
        if not words:
            raise ValueError("nothing in it")
        return tuple(dict.fromkeys(map(_user_id, words)))

    @field_validator("ssh_cmd")
    @classmethod
    def _split(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not "".join(shlex.split(value.get_secret_value())[:1]):
            raise ValueError("no program in it")
        return value

    @field_validator("registry_dir")
    @classmethod
    def _check(cls, value: Path, info: ValidationInfo) -> Path:
        """Keep a path below `~` as it is: whose home that means depends on where it is used."""
        written = value.as_posix()
        if "\0" in written:
            raise ValueError("no path")
        if info.data.get("ssh_cmd") is not None and not (
            written.startswith(("/", "~/")) or written == "~"  # another directory, or home, over there
        ):
            raise ValueError("neither absolute nor below ~")
        try:
            value.expanduser()
            return value if written.startswith("~") else value.absolute()
        except (RuntimeError, OSError) as error:  # no such user, no home; a working directory that is gone
            raise ValueError(str(error)) from None

    @property
    def local_dir(self) -> Path:
        """The registry directory on this machine."""
        return self.registry_dir.expanduser()

    @property
    def relay_dir(self) -> str:
        """The registry directory on the relay: an absolute path, or one below `~`."""
        return self.registry_dir.as_posix()

    @property
    def ssh_words(self) -> tuple[str, ...]:
        """The words of RELAY_SSH_CMD, which may hold secrets; none if it is not set."""
        return () if self.ssh_cmd is None else tuple(shlex.split(self.ssh_cmd.get_secret_value()))

    @property
    def ssh_shown(self) -> str:
        """What may be shown of RELAY_SSH_CMD."""
        return f"{clean_line(self.ssh_words[0], 100)} …" if self.ssh_cmd is not None else ""


def _user_id(name: str) -> int:
    """Return the id of a user of this machine, by name or as a number.

    Raises:
        ValueError: There is no such user.
    """
    if name.isdecimal() and name.isascii() and len(name) <= _MOST_DIGITS:
        return int(name)
    try:
        import pwd

        return pwd.getpwnam(name).pw_uid
    except (ImportError, KeyError, ValueError):
        raise ValueError(f"{clean_line(name, 40)!r} is no user of this machine") from None
