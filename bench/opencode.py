#!/usr/bin/env python3
"""The least that can stand for OpenCode: notes when it was started and when it answers, then answers.

`opencode [serve] --port N [--hostname ADDRESS] …`; the notes go to the file BENCH_NOTES, as nanoseconds since
the epoch.
"""

import base64
import http.server
import os
import sys
import time


class Health(http.server.BaseHTTPRequestHandler):
    """Answers everything with the health of an OpenCode 1.x, if need be after asking for the password."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content = b'{"healthy":true,"version":"1.18.33"}'
        password = os.environ.get("OPENCODE_SERVER_PASSWORD")
        known = f"Basic {base64.b64encode(f'opencode:{password}'.encode()).decode()}"
        if password and self.headers["authorization"] != known:
            self.send_response(401)
            self.send_header("www-authenticate", 'Basic realm="Secure Area"')
        else:
            self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Say nothing."""


def main() -> None:
    """Note, listen, note, serve."""
    started = time.time_ns()
    if sys.argv[-1] == "--version":
        print("1.18.33")
        return
    notes = os.environ["BENCH_NOTES"]
    port = int(sys.argv[sys.argv.index("--port") + 1]) if "--port" in sys.argv else 0
    host = sys.argv[sys.argv.index("--hostname") + 1] if "--hostname" in sys.argv else "127.0.0.1"
    if not port:
        answering = 0
        server = None
    else:
        server = http.server.ThreadingHTTPServer((host, port), Health)
        answering = time.time_ns()
    with open(f"{notes}.new", "w", encoding="ascii") as file:  # noqa: PTH123 - started often: few imports
        file.write(f"[{started}, {answering}]")
    os.replace(f"{notes}.new", notes)  # noqa: PTH105
    if server is not None:
        server.serve_forever()


if __name__ == "__main__":
    main()
