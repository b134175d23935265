"""Asks the instance hooks of plugins. One that fails is logged with its plugin's name and stops nobody."""

import logging
from collections.abc import Iterator
from typing import Any

import httpx2
import pluggy

from opencode_mcp.model import Endpoint, Instance
from opencode_mcp.opencode.http import OpenCodeAuth
from opencode_mcp.settings import CoreSettings

logger = logging.getLogger(__name__)


class Policies:
    """Who may join, with which credentials, and who is told.

    Args:
        hook: The hooks of all loaded plugins.
        settings: Holds the user name and password that serve where no plugin has an answer.
    """

    def __init__(self, hook: pluggy.HookRelay, settings: CoreSettings) -> None:
        self._hook = hook
        self._settings = settings

    def admit(self, endpoint: Endpoint) -> bool:
        """Whether `endpoint` may join; a policy that fails keeps it out."""
        for answer in self._answers(self._hook.opencode_mcp_instance_admit, endpoint=endpoint):
            if answer is not None:
                return bool(answer) and not isinstance(answer, Exception)
        return True

    def authenticate(self, endpoint: Endpoint) -> httpx2.Auth | None:
        """Return the credentials for `endpoint`; the ones in the settings go to vouched endpoints only."""
        for answer in self._answers(self._hook.opencode_mcp_instance_auth, endpoint=endpoint):
            if isinstance(answer, httpx2.Auth):
                return answer
            if answer is not None and not isinstance(answer, Exception):
                kind = type(answer).__name__  # not the value, which may be a secret
                logger.error("A plugin gave %s for credentials, not httpx2.Auth: it does not count.", kind)
        password = self._settings.server_password
        if password is None or not endpoint.vouched:
            return None
        return OpenCodeAuth(self._settings.server_username, password.get_secret_value())

    def tell(self, before: Instance | None, after: Instance | None) -> None:
        """Tell plugins that an instance joined, changed or left."""
        for _ in self._answers(self._hook.opencode_mcp_instance_changed, before=before, after=after):
            pass

    def _answers(self, hook: pluggy.HookCaller, **arguments: Any) -> Iterator[Any]:
        """Ask one plugin after the other, in pluggy's order; who fails answers with the error."""
        for one in reversed(hook.get_hookimpls()):
            try:
                answer: Any = one.function(*(arguments[name] for name in one.argnames))
            except Exception as error:
                logger.exception("Plugin %s: its hook %s failed.", one.plugin_name, hook.name)
                answer = error
            yield answer
