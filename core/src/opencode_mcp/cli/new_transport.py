"""`opencode-mcp new-transport NAME`: a package for a transport of one's own, to begin with."""

import shlex
from importlib.metadata import distributions, entry_points
from pathlib import Path
from typing import Annotated

import typer

from opencode_mcp import scaffold
from opencode_mcp.cli.serve import give_up
from opencode_mcp.errors import OpenCodeMCPError
from opencode_mcp.plugins import TRANSPORTS_GROUP

_NEXT = """\
Wrote {place}: a transport that works, and its tests. What to do next:
{before_the_release}
  cd {place} && uv run pytest
  put your own finding into src/{module}/__init__.py, and see what it finds:
  TRANSPORT={name} uv run opencode-mcp doctor
"""


def new_transport(
    name: Annotated[str, typer.Argument(help="What TRANSPORT is to say, for example my-cloud.")],
    into: Annotated[
        Path | None,
        typer.Option(help="The folder for it, new or empty.", show_default="opencode-mcp-NAME"),
    ] = None,
) -> None:
    """Write a package for a transport of your own: settings, tests and all. Then change what it finds."""
    try:
        place = into or Path(scaffold.distribution_of(name))
        _refuse_a_name_that_is_taken(name)
        scaffold.write(name, place)
    except OpenCodeMCPError as error:
        give_up(error)
    module = scaffold.module_of(name)
    before = scaffold.BEFORE_THE_RELEASE
    words = {"place": shlex.quote(str(place)), "module": module, "name": name, "before_the_release": before}
    typer.echo(_NEXT.format(**words), nl=False)


def _refuse_a_name_that_is_taken(name: str) -> None:
    """Two packages that bring one name shut each other out.

    Raises:
        ScaffoldError: If a package that is installed here has it.
    """
    for entry in entry_points(group=TRANSPORTS_GROUP, name=name):
        package = entry.dist.name if entry.dist else "a package"
        raise scaffold.ScaffoldError(f"{package} brings a transport {name!r} already. Choose another name.")
    if any(distributions(name=scaffold.distribution_of(name))):
        raise scaffold.ScaffoldError(
            f"{scaffold.distribution_of(name)} is installed already. Choose another name."
        )
