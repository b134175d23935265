"""Environment variables: what they are, what they take, and what is said of those that cannot be used."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices, Field, SecretBytes, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from opencode_mcp import Settings, SettingsError, variable
from opencode_mcp.settings import ConnectSettings, CoreSettings, documented, read_settings, secret_variables
from support.command import Command

DEFAULTS = {
    "TRANSPORT": ("local-relay",),
    "DISCOVERY_INTERVAL_MS": 30_000,
    "HEALTH_CHECK_TIMEOUT_MS": 3_000,
    "SEND_TIMEOUT_MS": 300_000,
    "OPENCODE_SERVER_USERNAME": "opencode",
    "OPENCODE_SERVER_PASSWORD": None,
    "OPENCODE_MCP_LOG_LEVEL": "WARNING",
}
NUMBERS = {"DISCOVERY_INTERVAL_MS": 100, "HEALTH_CHECK_TIMEOUT_MS": 1, "SEND_TIMEOUT_MS": 1}
"""The numbers and the smallest value that each takes."""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DEFAULTS, *CoreSettings.model_fields):
        monkeypatch.delenv(name, raising=False)


def by_variable(settings: CoreSettings) -> dict[str, object]:
    return {
        documented(field).variable: getattr(settings, name)
        for name, field in CoreSettings.model_fields.items()
    }


def test_core_reads_these_variables_with_these_defaults():
    assert by_variable(read_settings(CoreSettings)) == DEFAULTS


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_empty_variable_is_like_none(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "")
    assert by_variable(read_settings(CoreSettings)) == DEFAULTS


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    given = {
        "TRANSPORT": "mdns",
        "DISCOVERY_INTERVAL_MS": "100",
        "HEALTH_CHECK_TIMEOUT_MS": "1",
        "SEND_TIMEOUT_MS": "1000000000000000",
        "OPENCODE_SERVER_USERNAME": "me",
        "OPENCODE_SERVER_PASSWORD": "hunter2",
        "OPENCODE_MCP_LOG_LEVEL": "DEBUG",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(CoreSettings)
    assert by_variable(settings) == {
        **given,
        "TRANSPORT": ("mdns",),
        "DISCOVERY_INTERVAL_MS": 100,
        "HEALTH_CHECK_TIMEOUT_MS": 1,
        "SEND_TIMEOUT_MS": 10**15,
        "OPENCODE_SERVER_PASSWORD": SecretStr("hunter2"),
    }


@pytest.mark.parametrize("name", CoreSettings.model_fields)
def test_the_name_of_a_field_is_no_variable(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "7")
    assert by_variable(read_settings(CoreSettings)) == DEFAULTS


def test_the_name_of_a_field_serves_in_code():
    assert CoreSettings(send_timeout_ms=7).send_timeout_ms == 7


def test_settings_do_not_change():
    settings = read_settings(CoreSettings)
    with pytest.raises(ValidationError, match="frozen"):
        settings.send_timeout_ms = 1


@pytest.mark.parametrize("wrong", ["soon", "-1", "1.5", "1e3", "0x10", "true", "nan", " ", "{}", "9" * 50])
@pytest.mark.parametrize(("name", "least"), NUMBERS.items())
def test_a_number_that_is_none_is_told_with_what_the_variable_takes(
    monkeypatch: pytest.MonkeyPatch, name: str, least: int, wrong: str
):
    monkeypatch.setenv(name, wrong)
    with pytest.raises(SettingsError) as error:
        read_settings(CoreSettings)
    takes = f"a whole number of milliseconds, {least} or more"
    assert str(error.value) == f"{name}={wrong!r} cannot be used: it takes {takes}."


@pytest.mark.parametrize(("name", "least"), NUMBERS.items())
def test_a_number_below_the_least_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, least: int):
    monkeypatch.setenv(name, str(least))
    assert by_variable(read_settings(CoreSettings))[name] == least
    monkeypatch.setenv(name, str(least - 1))
    with pytest.raises(SettingsError, match=rf"^{name}='{least - 1}' cannot be used"):
        read_settings(CoreSettings)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_no_arithmetic_can_hold_is_refused_and_not_shown_in_full(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv(name, "9" * 5_000)
    with pytest.raises(SettingsError, match=rf"^{name}='9+… cannot be used") as error:
        read_settings(CoreSettings)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("wrong", ["debug", "TRACE", "10"])
def test_the_log_level_is_one_of_four(monkeypatch: pytest.MonkeyPatch, wrong: str):
    monkeypatch.setenv("OPENCODE_MCP_LOG_LEVEL", wrong)
    with pytest.raises(SettingsError, match=r"it takes DEBUG, INFO, WARNING or ERROR\.$"):
        read_settings(CoreSettings)


def test_of_several_wrong_values_each_is_told(monkeypatch: pytest.MonkeyPatch):
    for name in (*NUMBERS, "OPENCODE_MCP_LOG_LEVEL"):
        monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError) as error:
        read_settings(CoreSettings)
    told = [line.partition("=")[0] for line in str(error.value).splitlines()]
    assert told == [*NUMBERS, "OPENCODE_MCP_LOG_LEVEL"]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("mdns", ("mdns",)),
        ("mdns,local-relay", ("mdns", "local-relay")),
        ("  mdns ,\tlocal-relay ", ("mdns", "local-relay")),
        (",mdns,,local-relay,", ("mdns", "local-relay")),
        ("mdns, local-relay,mdns", ("mdns", "local-relay")),
    ],
)
def test_transport_takes_several_names_in_order_and_each_once(
    monkeypatch: pytest.MonkeyPatch, value: str, names: tuple[str, ...]
):
    monkeypatch.setenv("TRANSPORT", value)
    assert read_settings(CoreSettings).transport == names


@pytest.mark.parametrize("value", [",", " , ,", " "])
def test_transport_without_a_name_in_it_is_refused(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("TRANSPORT", value)
    with pytest.raises(SettingsError) as error:
        read_settings(CoreSettings)
    takes = "the name of an installed transport, or several with commas between"
    assert str(error.value) == f"TRANSPORT={value!r} cannot be used: it takes {takes}."


def test_the_password_is_in_no_repr(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", "hunter2")
    settings = read_settings(CoreSettings)
    assert settings.server_password is not None
    assert settings.server_password.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"


class Secretive(Settings):
    """A plugin's settings with secrets of every sort that is refused."""

    plain: SecretStr = variable("PLUGIN_PLAIN", "x" * 8, takes="a token", about="…", min_length=8)
    either: SecretStr | None = variable("PLUGIN_EITHER", None, takes="a token", about="…", min_length=8)
    raw: SecretBytes = variable("PLUGIN_RAW", b"x" * 8, takes="a token", about="…", min_length=8)
    many: list[SecretStr] = variable("PLUGIN_MANY", [], takes="tokens", about="…")


@pytest.mark.parametrize("name", ["PLUGIN_PLAIN", "PLUGIN_EITHER", "PLUGIN_RAW", "PLUGIN_MANY"])
def test_a_secret_that_is_refused_is_not_shown(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "hunter2")
    with pytest.raises(SettingsError, match=f"^{name} cannot be used: it takes ") as error:
        read_settings(Secretive)
    assert "hunter2" not in repr(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__  # the error behind it, which shows the value, is in no traceback


def test_the_variables_of_secrets_are_known_by_the_types_of_the_settings():
    class Aliased(Secretive):
        name: str = variable("PLUGIN_NAME", "", takes="a name", about="…")
        either: SecretStr | None = Field(None, validation_alias=AliasChoices("PLUGIN_NEW", "PLUGIN_OLD"))
        unset: SecretStr = SecretStr("")

    assert set(secret_variables(ConnectSettings)) == {"OPENCODE_SERVER_PASSWORD"}
    assert set(secret_variables(Aliased)) == {
        "PLUGIN_PLAIN",
        "PLUGIN_NEW",
        "PLUGIN_OLD",
        "PLUGIN_RAW",
        "PLUGIN_MANY",
    }


class Together(Settings):
    """A plugin's settings with a rule about two of them."""

    user: str = variable("PLUGIN_USER", "", takes="a name", about="…")
    token: SecretStr = variable("PLUGIN_TOKEN", SecretStr(""), takes="a token", about="…")

    @model_validator(mode="after")
    def _both_or_none(self) -> "Together":
        if bool(self.user) != bool(self.token.get_secret_value()):
            raise ValueError("both are needed, or none")
        return self


def test_a_rule_about_several_variables_names_them_and_shows_no_value(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLUGIN_TOKEN", "hunter2")
    with pytest.raises(SettingsError) as error:
        read_settings(Together)
    assert str(error.value) == "PLUGIN_USER, PLUGIN_TOKEN cannot be used: both are needed, or none."


class Listing(Settings):
    """A plugin's settings with a list that nothing takes apart, and a bounded one."""

    names: list[str] = variable("PLUGIN_NAMES", [], takes="names", about="…")
    ports: tuple[int, int] = variable("PLUGIN_PORTS", (1, 2), takes="two ports", about="…")


@pytest.mark.parametrize("value", ["a,b", '["a"]', "{"])
def test_a_value_is_text_and_never_json(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("PLUGIN_NAMES", value)
    with pytest.raises(SettingsError) as error:
        read_settings(Listing)
    assert str(error.value) == f"PLUGIN_NAMES={value!r} cannot be used: it takes names."


def test_a_variable_that_is_wrong_in_two_ways_is_told_once():
    class Twice(Settings):
        ports: tuple[int, int] = variable("PLUGIN_PORTS", ("x", "y"), takes="two ports", about="…")
        model_config = SettingsConfigDict(validate_default=True)

    with pytest.raises(SettingsError) as error:
        read_settings(Twice)
    assert str(error.value).count("PLUGIN_PORTS") == 1


@pytest.mark.parametrize(
    ("default", "shown"),
    [(None, ""), (("a", "b"), "a,b"), (True, "1"), (False, "0"), (5, "5"), (Path("/tmp/x"), "/tmp/x")],
)
def test_a_default_is_documented_as_one_would_write_it(default: Any, shown: str):
    field = variable("PLUGIN_X", default, takes="something", about="What it does.")
    assert documented(field) == ("PLUGIN_X", shown, "something", "What it does.")


def test_constraints_go_through_to_the_field():
    field = variable("PLUGIN_X", 5, takes="a number", about="…", ge=1)
    assert field.metadata == Field(ge=1).metadata


@pytest.mark.slow
def test_the_command_tells_a_bad_variable_on_stderr_alone_and_exits_with_2(tmp_path: Path):
    command = Command(tmp_path)
    ended = command(script=True, SEND_TIMEOUT_MS="soon", DISCOVERY_INTERVAL_MS="-1")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "opencode-mcp: "
        "DISCOVERY_INTERVAL_MS='-1' cannot be used: it takes a whole number of milliseconds, 100 or more.\n"
        "SEND_TIMEOUT_MS='soon' cannot be used: it takes a whole number of milliseconds, 1 or more.\n"
    )
    for arguments in (["instances"], ["transports"]):
        ended = command(*arguments, SEND_TIMEOUT_MS="soon")
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith("opencode-mcp: SEND_TIMEOUT_MS='soon' cannot be used: it takes ")
        assert "Traceback" not in ended.err
