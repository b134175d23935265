"""Service files, as OpenCode 2.x writes them for its background service."""

import json
import os
from pathlib import Path
from typing import Any

from opencode_mcp.testing import FakeOpenCode


def register_service(state: Path, /, name: str = "service.json", mode: int = 0o600, **content: Any) -> Path:
    """Write a service file below `state`, in one step; a key set to None is left out."""
    directory = state / "opencode"
    directory.mkdir(parents=True, exist_ok=True)
    told = {"id": "0d5e7c1a", "version": "2.1.2", "pid": os.getpid(), **content}
    beside = directory / f"{name}.tmp"
    beside.write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    beside.chmod(mode)
    beside.replace(directory / name)
    return directory / name


def register_fake(state: Path, fake: FakeOpenCode, /, name: str = "service.json", **changes: Any) -> Path:
    """Write the service file of a fake OpenCode that is being served."""
    told: dict[str, Any] = {"url": fake.url, "version": fake.version, "password": fake.password, **changes}
    return register_service(state, name, **told)
