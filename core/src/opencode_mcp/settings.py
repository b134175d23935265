"""Every environment variable of core, in one place, typed, with its unit; and the base for plugins' own."""

import re
import shlex
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from pydantic import AliasChoices, Field, SecretBytes, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from opencode_mcp.errors import SettingsError
from opencode_mcp.text import has_unsafe

LONGEST_MS = 10**15
"""The largest number of milliseconds to be taken: far beyond any life; keeps the arithmetic in floats."""

_VALUE_SHOWN = 100
_SOUNDS_SECRET = re.compile(
    r"(PASSW|PASSPHRASE|TOKEN|SECRET|PRIVATE|CREDENTIALS?$|(API|AUTH)_?KEY|_KEY$).*(?<!_FILE)(?<!_PATH)(?<!_DIR)$",
    re.IGNORECASE,
)


def variable(name: str, default: Any, *, takes: str, about: str, **constraints: Any) -> Any:
    """Declare a setting that is read from an environment variable.

    Args:
        name: The environment variable, for example `RELAY_REGISTRY_DIR`.
        default: Its value when the variable is unset or empty.
        takes: What it takes, in words that finish the sentence "it takes …", with the unit.
        about: What it does, one or two sentences; shown in the documentation and in `.env.example`.
        **constraints: Further arguments of `pydantic.Field`, for example `ge=1`.
    """
    extra: dict[str, Any] = {"takes": takes}
    return Field(default, validation_alias=name, description=about, json_schema_extra=extra, **constraints)


class Settings(BaseSettings):
    """Base of every settings model: values come from the environment, by the names given to `variable`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        case_sensitive=True,
        env_ignore_empty=True,
        enable_decoding=False,  # a value is text, never JSON; a validator takes it apart
        populate_by_name=True,
        env_prefix="=",  # for the fields' own names, which are no variables: no variable starts like this
    )


class CoreSettings(Settings):
    """What core itself reads from the environment."""

    transport: tuple[str, ...] = variable(
        "TRANSPORT",
        ("local-relay",),
        takes="the name of an installed transport, or several with commas between",
        about="Which transports find the instances. `opencode-mcp transports` lists those installed.",
    )
    discovery_interval_ms: int = variable(
        "DISCOVERY_INTERVAL_MS",
        30_000,
        takes="a whole number of milliseconds, 100 or more",
        about="How often a transport that cannot watch looks again; for one that can, the safety net.",
        ge=100,
        le=LONGEST_MS,
    )
    health_check_timeout_ms: int = variable(
        "HEALTH_CHECK_TIMEOUT_MS",
        3_000,
        takes="a whole number of milliseconds, 1 or more",
        about="How long an instance may take to answer a probe, as a whole.",
        ge=1,
        le=LONGEST_MS,
    )
    send_timeout_ms: int = variable(
        "SEND_TIMEOUT_MS",
        300_000,
        takes="a whole number of milliseconds, 1 or more",
        about="How long `send` waits for the agent when the client shows progress; the agent's work goes on.",
        ge=1,
        le=LONGEST_MS,
    )
    server_username: str = variable(
        "OPENCODE_SERVER_USERNAME",
        "opencode",
        takes="a user name",
        about="The user name for instances that want a password.",
    )
    server_password: SecretStr | None = variable(
        "OPENCODE_SERVER_PASSWORD",
        None,
        takes="a password",
        about="The password for instances that want one. Sent only to those a transport vouches for.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = variable(
        "OPENCODE_MCP_LOG_LEVEL",
        "WARNING",
        takes="DEBUG, INFO, WARNING or ERROR",
        about="How much is logged on stderr.",
    )

    @field_validator("transport", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        if not names:
            raise ValueError("no name in it")
        return names


class ConnectSettings(CoreSettings):
    """What `opencode-connected` reads from the environment besides."""

    instance_name: str = variable(
        "INSTANCE_NAME",
        "",
        takes="one line of 1 to 190 printable characters",
        about="What the instance is called. Default: the machine's name and the project's folder; for the "
        "background service of OpenCode 2.x, which has many projects, the machine's name.",
        max_length=190,  # leaves room for a number behind it
    )
    command: tuple[str, ...] = variable(
        "OPENCODE_MCP_COMMAND",
        ("opencode",),
        takes="a command with its first arguments, quoted as in a shell",
        about="What `opencode-connected` starts, for example `npx -y opencode-ai`.",
    )

    @field_validator("instance_name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if has_unsafe(value) or (value and not value.strip()):
            raise ValueError("not one line of printable characters")
        return value

    @field_validator("command", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        words = tuple(shlex.split(value))
        if not words:
            raise ValueError("no word in it")
        return words


SettingsT = TypeVar("SettingsT", bound=Settings)


def read_settings(model: type[SettingsT]) -> SettingsT:
    """Read a settings model from the environment.

    Raises:
        SettingsError: With one sentence for each unusable variable: its name, its value, what it takes;
            or with one that names the model, if its own code fails.
    """
    try:
        try:
            return model()
        except ValidationError as error:
            sentences = _sentences(model, error)
    except (Exception, SystemExit) as error:  # a plugin's validators are foreign code
        # Neither its text nor a traceback: both may show a secret.
        raise SettingsError(
            f"The settings {model.__module__}.{model.__qualname__} cannot be read: their own code raises "
            f"{type(error).__name__}. Update the package that brings them, or report it there."
        ) from None
    raise SettingsError("\n".join(sentences)) from None


def _sentences(model: type[Settings], error: ValidationError) -> list[str]:
    by_variable = {_variable(field) or name: field for name, field in model.model_fields.items()}
    sentences: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_context=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        field = by_variable.get(name)
        if field is None:  # a rule about several of them
            why = problem["msg"].removeprefix("Value error, ")
            sentences[name] = f"{', '.join(by_variable)} cannot be used: {why}."
            continue
        takes = documented(field).takes
        if problem["type"] == "missing":  # its input is the whole environment of the model, secrets included
            sentences[name] = f"{name} is not set: it takes {takes}."
            continue
        shown = "" if _is_secret(field.annotation) else f"={_shortened(repr(problem['input']))}"
        sentences[name] = f"{name}{shown} cannot be used: it takes {takes}."
    return list(sentences.values())


def _is_secret(annotation: object) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, SecretStr | SecretBytes):
        return True
    return any(map(_is_secret, get_args(annotation)))


def secret_variables(model: type[Settings]) -> Collection[str]:
    """Return the environment variables that set secrets of `model`: of type SecretStr or SecretBytes."""
    found: set[str] = set()
    for field in model.model_fields.values():
        if _is_secret(field.annotation):
            alias = field.validation_alias
            aliases = alias.choices if isinstance(alias, AliasChoices) else [alias]
            found.update(one for one in aliases if isinstance(one, str))
    return found


def sounds_secret(variable: str) -> bool:
    """Whether a variable of that name probably holds a secret; the path of a file is none."""
    return _SOUNDS_SECRET.search(variable) is not None


def _shortened(shown: str) -> str:
    return shown if len(shown) <= _VALUE_SHOWN else f"{shown[:_VALUE_SHOWN]}…"


class Documented(NamedTuple):
    """How a setting is explained to people."""

    variable: str
    default: str
    takes: str
    about: str


def documented(field: FieldInfo) -> Documented:
    """Return what `variable` was told about `field`; of one made without it, what can be said anyway."""
    told: object = field.json_schema_extra
    extra = cast("dict[str, object]", told) if isinstance(told, dict) else {}
    annotation: object = field.annotation
    takes = extra.get("takes") or f"a value of the type {getattr(annotation, '__name__', annotation)}"
    default: object = None if field.is_required() else field.default
    if isinstance(default, tuple):
        shown = ",".join(map(str, cast("tuple[object, ...]", default)))
    elif isinstance(default, bool):
        shown = "1" if default else "0"
    else:
        shown = "" if default is None else str(default)
    return Documented(_variable(field), shown, str(takes), field.description or "")


def _variable(field: FieldInfo) -> str:
    """The environment variable that sets `field`; empty if none does, or several."""
    return field.validation_alias if isinstance(field.validation_alias, str) else ""
