"""Asks the instance hooks of plugins. One that fails is logged with its plugin's name and stops nobody."""

import logging
import traceback
from typing import Any

import httpx2
import pluggy

from opencode_mcp.model import Endpoint, Instance
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
        answer = self._ask(self._hook.opencode_mcp_instance_admit, False, endpoint=endpoint)
        return answer is None or bool(answer)

    def authenticate(self, endpoint: Endpoint) -> httpx2.Auth | None:
        """Return the credentials for `endpoint`; the ones in the settings go to vouched endpoints only."""
        auth = self._ask(self._hook.opencode_mcp_instance_auth, None, endpoint=endpoint)
        if isinstance(auth, httpx2.Auth):
            return auth
        if auth is not None:
            logger.error(
                "A plugin's hook opencode_mcp_instance_auth returned %s, not httpx2.Auth: it does not count.",
                type(auth).__name__,  # not the value, which may be a secret
            )
        password = self._settings.server_password
        if password is None or not endpoint.vouched:
            return None
        return httpx2.BasicAuth(self._settings.server_username, password.get_secret_value())

    def tell(self, before: Instance | None, after: Instance | None) -> None:
        """Tell plugins that an instance joined, changed or left."""
        self._ask(self._hook.opencode_mcp_instance_changed, None, before=before, after=after)

    def _ask(self, hook: pluggy.HookCaller, otherwise: Any, **arguments: Any) -> Any:
        try:
            return hook(**arguments)
        except Exception as error:
            run = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
            failed = [
                one.plugin_name
                for one in hook.get_hookimpls()
                if getattr(one.function, "__code__", None) in run
            ]
            logger.exception("Plugin %s: its hook %s failed.", ", ".join(failed) or "?", hook.name)
            return otherwise
