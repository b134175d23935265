"""Every error this project raises on purpose. A message says what failed, where, and what to do next."""

from typing import cast


class OpenCodeMCPError(Exception):
    """Base of all errors of opencode-mcp; `str(error)` is a sentence for a person."""


class SettingsError(OpenCodeMCPError):
    """An environment variable holds something that cannot be used."""


class PluginError(OpenCodeMCPError):
    """A plugin that was asked for is missing, broken or made for another contract.

    Attributes:
        told: What is wrong, as a sentence.
        mend: What to do about it; empty if nobody knows.
    """

    def __init__(self, told: str, mend: str = "") -> None:
        super().__init__(f"{told} {mend}".rstrip())
        self.told = told
        self.mend = mend


class TransportError(OpenCodeMCPError):
    """A transport cannot do its work at present; core reports it as degraded and tries again."""


class UnreachableError(OpenCodeMCPError):
    """An instance did not answer, or not in time."""


class NotListeningError(UnreachableError):
    """Nothing accepts connections at an address: whatever was to be sent was not."""


class LocalError(OpenCodeMCPError):
    """This machine is at fault, not the instance: no file descriptors left, no network."""


class CredentialsError(OpenCodeMCPError):
    """An instance wants credentials that we do not have, or refuses those we have.

    Attributes:
        as_opencode: Whether they are asked for the way OpenCode does, not by something in front of it.
    """

    def __init__(self, message: str, *, as_opencode: bool = False) -> None:
        super().__init__(message)
        self.as_opencode = as_opencode


class StrangerError(CredentialsError):
    """Another user of this machine holds the other end of a connection, so no credentials go there.

    Attributes:
        told: What is wrong, as a sentence.
        mend: What to do about it, as sentences; empty if nobody knows.
    """

    def __init__(self, told: str, mend: str = "") -> None:
        super().__init__(f"{told} {mend}".rstrip())
        self.told = told
        self.mend = mend


class ProtocolError(OpenCodeMCPError):
    """Something answered, but not as an OpenCode server does."""


class TooLargeError(ProtocolError):
    """An answer, or an event, is larger than what is read of one."""


class RequestError(OpenCodeMCPError):
    """A server answered a request with an error.

    Attributes:
        status: The HTTP status, or 0 if the refusal is not of HTTP.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ConversationError(OpenCodeMCPError):
    """What was asked of an instance cannot be done: unknown or ambiguous name, offline, no such session."""


class StartError(OpenCodeMCPError):
    """OpenCode cannot be started, or not announced.

    Attributes:
        code: What the process ends with.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def ours(error: BaseException) -> OpenCodeMCPError | None:
    """Find our error in `error`, which may be an exception group; None if there is another as well."""
    if isinstance(error, OpenCodeMCPError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [ours(one) for one in cast("BaseExceptionGroup[BaseException]", error).exceptions]
    return found[0] if all(found) else None
