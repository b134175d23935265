"""Which instances this machine announces itself, for a transport that would meet them as strangers."""

from collections.abc import Mapping


def announced_here() -> Mapping[str, str]:
    """Return the instances that `opencode-connected` announces from this machine at present.

    Only this user's count. An id is that of the `Endpoint` that `Announcer.announce` was given, so a
    transport that finds servers by looking around can tell which of them are announced already. It is
    there before the first announcement, from the moment the instance has its name.

    It blocks, since it reads files: call it from a thread. Nothing is made or changed.

    Returns:
        By id, the URL at which each answers on this machine; none if there is no state directory, or it is
        not this user's alone, or on Windows, where `opencode-connected` does not run.
    """
    try:
        from opencode_mcp.state.places import existing_state_directory
        from opencode_mcp.state.records import running
    except ImportError:  # there is no fcntl
        return {}
    directory = existing_state_directory()
    try:
        return {record.id: record.url for record in running(directory)} if directory else {}
    except OSError:
        return {}
