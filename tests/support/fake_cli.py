"""A FakeOpenCode that is started as `opencode serve --port N --hostname H` is, for `opencode-connected`."""

import os
import sys

if __name__ == "__main__" and sys.argv[1:] == ["--version"]:
    sys.exit(print("1.18.33"))  # before what takes time

import anyio

from support.fake_process import serve


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


if __name__ == "__main__":
    password = os.environ.get("OPENCODE_SERVER_PASSWORD")
    anyio.run(serve, int(option("--port")), option("--hostname"), password, "/srv/web")
