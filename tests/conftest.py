"""What all tests share: asyncio is the backend, since uvicorn and `mcp` run on it; nothing may block it."""

from collections.abc import Generator, Iterator

import pytest
from blockbuster import blockbuster_ctx


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what tests print travel between processes: names of files that are no UTF-8 cannot."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def nothing_blocks_the_event_loop() -> Iterator[None]:
    """Raise where our code blocks the event loop; plugins and settings are read before there is one."""
    with blockbuster_ctx(
        ["opencode_mcp", "opencode_mcp_local_relay", "opencode_mcp_mdns", "opencode_mcp_tailscale"],
        excluded_modules=["opencode_mcp.testing", "opencode_mcp.plugins", "opencode_mcp.settings"],
    ) as blockbuster:
        for function in blockbuster.functions.values():
            function.can_block_in("opencode_mcp/mcp/server.py", "create_server")
        yield
