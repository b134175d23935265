"""Fixtures for the tests of the packages, each made once for all of them.

* `wheels`: the wheel of each distribution of this repository and of the example, by the distribution's name.
* `clean_environment("opencode-mcp-core[testing]", …)`: a new virtual environment with an empty home, into
  which these are installed from those wheels, and what they depend on as `requirements/dev.txt` pins it.
* `everything`: one such environment with what users install, the example and the kit; nobody changes it.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from packages.wheel_parts import PACKAGES, ROOT, CleanEnvironment, CleanEnvironments, Uv
from support.require import skip_or_fail

_PINS = ROOT / "requirements/dev.txt"


@pytest.fixture(scope="session")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Uv:
    """The uv that `./dev` uses: the one in this environment, or the user's own."""
    here = Path(sys.executable).parent
    places = [str(here), str(here.parent / ".uv/bin"), os.environ.get("PATH", os.defpath)]
    path = shutil.which("uv", path=os.pathsep.join(places))
    if path is None:
        skip_or_fail("there is no uv: pip install uv")
    return Uv(path, tmp_path_factory.mktemp("uv-home"))


@pytest.fixture(scope="session")
def wheels(uv: Uv, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The wheel of each distribution, by the distribution's name."""
    directory = tmp_path_factory.mktemp("wheels")

    def build(package: Path) -> None:
        out = ("--out-dir", directory, "--quiet")
        uv("build", "--wheel", *out, "--python", sys.executable, "--build-constraints", _PINS, package)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(build, PACKAGES))
    return {path.name.partition("-")[0].replace("_", "-"): path for path in directory.glob("*.whl")}


@pytest.fixture(scope="session")
def clean_environment(
    uv: Uv, wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> CleanEnvironments:
    """Makes environments; see above."""
    ours = tmp_path_factory.mktemp("constraints") / "ours.txt"
    ours.write_text("".join(f"{name} @ {path.as_uri()}\n" for name, path in wheels.items()))

    def make(*requirements: str) -> CleanEnvironment:
        place = tmp_path_factory.mktemp("clean")
        made = CleanEnvironment(place / "venv", place / "home")
        made.home.mkdir()
        uv("venv", "--quiet", "--python", sys.executable, made.venv)
        install = ("pip", "install", "--quiet", "--python", made.programs / "python")
        uv(*install, "--constraints", ours, "--constraints", _PINS, *requirements)
        return made

    return make


@pytest.fixture(scope="session")
def everything(clean_environment: CleanEnvironments) -> CleanEnvironment:
    """What users install, the example and the kit."""
    return clean_environment("opencode-mcp", "opencode-mcp-static", "opencode-mcp-core[testing]")
