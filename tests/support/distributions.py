"""Installed distributions that a test makes up: what an installer leaves behind, in a folder of their own."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent


class Site:
    """A folder of installed distributions, for `sys.path` or `PYTHONPATH`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def install(
        self,
        distribution: str,
        *,
        version: str = "1.0",
        transports: Mapping[str, str] | None = None,
        plugins: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        """Install a distribution.

        Args:
            distribution: Its name.
            version: Its version.
            transports: Entry points in the group `opencode_mcp.transports`, the object of each by its name.
            plugins: The same for the group `opencode_mcp.plugins`.
            modules: The source of each module by its name; it may be indented.
        """
        about = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        groups = {"opencode_mcp.transports": transports, "opencode_mcp.plugins": plugins}
        lines: list[str] = []
        for group, entries in groups.items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in (entries or {}).items())]
        (about / "entry_points.txt").write_text("\n".join(lines))
        for name, source in (modules or {}).items():
            (self.path / f"{name}.py").write_text(dedent(source))
        importlib.invalidate_caches()

    def install_transport(self, name: str, *, marker: Path | None = None) -> None:
        """Install a transport that works and finds nothing, as the distribution `opencode-mcp-<name>`.

        Args:
            name: What `TRANSPORT` says.
            marker: A file that importing the transport leaves behind.
        """
        module = f"opencode_mcp_{name.replace('-', '_')}"
        source = TRANSPORT.replace("NAME", repr(name))
        if marker is not None:
            source = f"open({str(marker)!r}, 'w').close()\n{source}"
        self.install(f"opencode-mcp-{name}", transports={name: module}, modules={module: source})


TRANSPORT = """
from contextlib import asynccontextmanager

from opencode_mcp import Settings, Transport, TransportPlugin, hookimpl


class Nothing(Transport):
    async def discover(self):
        return []


@asynccontextmanager
async def open_nothing(settings):
    yield Nothing()


@hookimpl
def opencode_mcp_transports():
    return [TransportPlugin(name=NAME, summary="Finds nothing", settings=Settings, open=open_nothing)]
"""
"""The source of a transport that works; put its name for `NAME`."""
