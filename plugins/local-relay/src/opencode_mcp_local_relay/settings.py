"""The environment variables of local-relay."""

from pathlib import Path

from pydantic import field_validator

from opencode_mcp import Settings, variable


class LocalRelaySettings(Settings):
    """What local-relay reads from the environment."""

    registry_dir: Path = variable(
        "RELAY_REGISTRY_DIR",
        Path("/tmp/opencode-relay"),  # noqa: S108 - where the original tool looks; whose it is gets checked
        takes="the path of a directory; `~` stands for your home",
        about="Where registration files are looked for, and written when an instance is announced.",
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

    @field_validator("registry_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        try:
            return value.expanduser().absolute()
        except (RuntimeError, OSError) as error:  # no such user, no home; a working directory that is gone
            raise ValueError(str(error)) from None
