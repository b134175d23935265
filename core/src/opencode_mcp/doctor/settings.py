"""Lists settings as they are in force, so that they can be shown: of a secret only whether it is set."""

import os
from collections.abc import Sequence
from typing import get_args

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from opencode_mcp.doctor.report import Setting
from opencode_mcp.settings import Settings, documented, secret_variables, sounds_secret


def listed(model: type[Settings], settings: Settings | None) -> Sequence[Setting]:
    """List the variables of a settings model.

    Args:
        model: The model.
        settings: What was read; None if it cannot be, and then values are shown as they are set.
    """
    secrets = secret_variables(model)
    found: list[Setting] = []
    for name, field in model.model_fields.items():
        variable = next((one for one in _variables(field) if os.environ.get(one)), None)
        given = variable is not None
        variable = variable or next(iter(_variables(field)), name)
        text = field.annotation is str or str in get_args(field.annotation)
        secret = variable in secrets or (text and sounds_secret(variable))
        if secret:
            value = "set" if given else "not set"
        elif settings is None:
            value = os.environ.get(variable, "") or documented(field).default
        else:
            value = _shown(getattr(settings, name))
        found.append(Setting(variable=variable, value=value, given=given, secret=secret))
    return found


def _variables(field: FieldInfo) -> Sequence[str]:
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return [one for one in choices if isinstance(one, str)]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple | list | set | frozenset):
        return ",".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return "" if value is None else str(value)
