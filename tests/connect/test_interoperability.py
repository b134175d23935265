"""The original tool lists our instances, and we list its: files in its exact format, read as it reads."""

import json
import re
from datetime import datetime
from typing import Any

import httpx2
import pytest

from support.connected import Connected
from support.stdio_server import fleet_process

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

ORIGINAL = """\
{
  "name": "desktop-bank",
  "hostname": "desktop",
  "port": PORT,
  "localPort": 4096,
  "cwd": "/home/me/bank",
  "connectedAt": "2026-03-14T10:30:00Z"
}
"""
"""A registration as its shell script writes it."""


def as_the_original_lists(connected: Connected) -> list[dict[str, Any]]:
    """Do as the original does: read every `*.json`, use these keys, ask `localhost`."""
    listed: list[dict[str, Any]] = []
    for path in sorted(connected.registry.glob("*.json")):
        said = json.loads(path.read_text())
        health = httpx2.get(f"http://localhost:{said['port']}/global/health", trust_env=False, timeout=3)
        listed.append(
            {
                "name": said["name"],
                "hostname": said["hostname"],
                "cwd": said["cwd"],
                "localPort": said["localPort"],
                "connectedAt": datetime.fromisoformat(said["connectedAt"]),
                "healthy": health.json()["healthy"],
            }
        )
    return listed


def test_the_original_lists_what_we_announce(connected: Connected) -> None:
    with connected.announced(INSTANCE_NAME="laptop-shop"):
        [one] = as_the_original_lists(connected)
        said = connected.registration()
    assert (one["name"], one["cwd"]) == ("laptop-shop", str(connected.project))
    assert one["healthy"] is True
    kinds = {key: type(value).__name__ for key, value in said.items()}
    assert {
        "name": "str",
        "hostname": "str",
        "port": "int",
        "localPort": "int",
        "cwd": "str",
        "connectedAt": "str",
    }.items() <= kinds.items()
    assert said["port"] == said["localPort"]
    # JavaScript's Date reads this form in every engine.
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["connectedAt"])


async def test_we_list_what_the_original_announces_beside_ours(connected: Connected) -> None:
    async with fleet_process(connected.gateway, count=1):
        [made_up] = connected.registrations()
        for path in connected.files():
            path.unlink()
        path = connected.registry / "desktop-bank.json"
        content = ORIGINAL.replace("PORT", str(made_up["port"]))
        path.write_text(content)
        path.chmod(0o644)  # as its umask makes it
        with connected.announced(INSTANCE_NAME="laptop-shop"):
            listed = await connected.gateway.meanwhile("instances", "--json")
            rows = {row["name"]: row for row in json.loads(listed.out)["instances"]}
            assert rows.keys() == {"desktop-bank", "laptop-shop"}
            bank = rows["desktop-bank"]
            assert (bank["status"], bank["host"]) == ("online", "desktop")
            assert rows["laptop-shop"]["directory"] == str(connected.project)
            assert {one["name"] for one in as_the_original_lists(connected)} == rows.keys()
        assert path.read_text() == content, "ours come and go without touching it"


def test_a_name_that_the_original_has_registered_is_not_overwritten(connected: Connected) -> None:
    connected.registry.mkdir(mode=0o700)
    path = connected.registry / "laptop-shop.json"
    content = ORIGINAL.replace("PORT", "1").replace("desktop-bank", "laptop-shop")
    path.write_text(content)
    with connected.announced(INSTANCE_NAME="laptop-shop"):
        assert [one["name"] for one in connected.registrations()] == ["laptop-shop", "laptop-shop-2"]
    assert path.read_text() == content
