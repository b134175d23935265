"""Every error this project raises on purpose. A message says what failed, where, and what to do next."""


class OpenCodeMCPError(Exception):
    """Base of all errors of opencode-mcp; `str(error)` is a sentence for a person."""


class SettingsError(OpenCodeMCPError):
    """An environment variable holds something that cannot be used."""


class PluginError(OpenCodeMCPError):
    """A plugin that was asked for is missing, broken or made for another contract."""


class TransportError(OpenCodeMCPError):
    """A transport cannot do its work at present; core reports it as degraded and tries again."""


class UnreachableError(OpenCodeMCPError):
    """An instance did not answer, or not in time."""


class CredentialsError(OpenCodeMCPError):
    """An instance wants credentials that we do not have, or refuses those we have."""


class ProtocolError(OpenCodeMCPError):
    """Something answered, but not as an OpenCode server does."""


class RequestError(OpenCodeMCPError):
    """An OpenCode server understood a request and refused it."""


class ConversationError(OpenCodeMCPError):
    """What was asked of an instance cannot be done: unknown or ambiguous name, offline, no such session."""
