"""The light OpenCode as one of 2.x: `serve --stdio`, `service start | stop`, and a TUI that opens no port.

Imported by `light_opencode`, and like it of the standard library alone. More words for `LIGHT_DOES`:

* `service=fails`: `service start` ends with an error. `service=hangs`: it never ends. `service=void`: it ends
  well, and there is no service. `service=late`: it takes a second.
* `tells=URL`: `serve --stdio` says that it listens there. `tells=`: it says nothing.
* `preview`: answer as the preview of 2.0 does.

The service listens at LIGHT_SERVICE_PORT, any free one by default, and wants LIGHT_SERVICE_PASSWORD, by
default one that is made up. LIGHT_SERVICE_VERSION is its version, if it has another one than the program.
"""

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time

import light_opencode as light


def main(does: dict[str, str]) -> None:
    words = sys.argv[1:]
    if words[:1] == ["service"]:
        {"start": start, "stop": stop, "run": run}[words[1]](does)
        return
    light.obey(does)
    light.record()
    if "exit" in does:
        sys.exit(int(does["exit"]))
    if words[:1] == ["serve"]:
        serve(does)
    else:
        if "--port" in words or "--hostname" in words:
            sys.exit("Unknown option")
        while True:
            signal.pause()


def file() -> str:
    return os.path.join(os.environ["XDG_STATE_HOME"], "opencode", "service.json")  # noqa: PTH118


def start(does: dict[str, str]) -> None:
    what = does.get("service")
    if what == "fails":
        sys.stderr.write("some context\nthe database is locked\n")
        sys.exit(3)
    if what == "hangs":
        time.sleep(300)
    if what == "void":
        return
    if what == "late":
        time.sleep(1)
    subprocess.Popen(  # which keeps our stdout, as careless daemons do
        [sys.executable, "-IS", light.__file__, "service", "run"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not os.path.exists(file()):  # noqa: PTH110
        time.sleep(0.01)


def stop(_: dict[str, str]) -> None:
    with open(file()) as told:  # noqa: PTH123
        pid = json.load(told)["pid"]
    with open(f"/proc/{pid}/cmdline", "rb") as words:  # noqa: PTH123
        if b"\0service\0run\0" not in words.read():
            sys.exit("not the service")
    os.kill(pid, signal.SIGTERM)
    while os.path.exists(file()):  # noqa: PTH110
        time.sleep(0.01)


def run(does: dict[str, str]) -> None:
    password = os.environ.get("LIGHT_SERVICE_PASSWORD") or secrets.token_hex(16)
    version = os.environ.get("LIGHT_SERVICE_VERSION") or does["version"]
    server = socket.create_server(("127.0.0.1", int(os.environ.get("LIGHT_SERVICE_PORT", "0"))))
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    signal.signal(signal.SIGTERM, lambda *_: (os.unlink(file()), os._exit(0)))  # noqa: PTH108
    os.makedirs(os.path.dirname(file()), exist_ok=True)  # noqa: PTH103, PTH120
    fd = os.open(f"{file()}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as beside:
        told = {"id": "x", "version": version, "url": url, "pid": os.getpid(), "password": password}
        json.dump(told, beside)
    os.replace(f"{file()}.tmp", file())  # noqa: PTH105
    listen(server, {**does, "version": version}, password, url)


def serve(does: dict[str, str]) -> None:
    password = os.environ.get("OPENCODE_PASSWORD") or os.environ.get("OPENCODE_SERVER_PASSWORD")
    if "--stdio" not in sys.argv or not password:
        sys.exit("unsafe")
    host, port = light.option("--hostname", "127.0.0.1"), int(light.option("--port", "4096"))
    while True:
        try:
            server = socket.create_server((host, port))
            break
        except OSError:
            port += 1
    url = f"http://{host}:{port}"
    threading.Thread(target=until_stdin_closes, daemon=True).start()
    time.sleep(float(does.get("slow", 0)))
    if does.get("tells", url):
        print("a word of warning")
        print(json.dumps({"url": does.get("tells", url)}), flush=True)
    listen(server, does, password, url)


def until_stdin_closes() -> None:
    sys.stdin.read()
    os._exit(0)


def listen(server: socket.socket, does: dict[str, str], password: str, url: str) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=converse, args=(connection, does, password, url), daemon=True).start()


def converse(connection: socket.socket, does: dict[str, str], password: str, url: str) -> None:
    with connection:
        asked = b""
        while b"\r\n\r\n" not in asked:
            more = connection.recv(4096)
            if not more:
                return
            asked += more
        told = answer(asked.decode("latin-1"), does, password, url)
        connection.sendall(told)
        while b"text/event-stream" in told:
            connection.sendall(b": heartbeat\n\n")
            time.sleep(5)


def answer(asked: str, does: dict[str, str], password: str, url: str) -> bytes:
    status, kind, body, asks = "404 Not Found", "application/json", "", ""
    wanted = base64.b64encode(f"opencode:{password}".encode()).decode()
    path = asked.split()[1].partition("?")[0]
    info = {"version": does["version"], "pid": os.getpid()}
    if f"basic {wanted}".lower() not in asked.lower():
        status, asks = "401 Unauthorized", '\r\nwww-authenticate: Basic realm="Secure Area"'
    elif path == "/api/info" and "preview" not in does:
        status, body = "200 OK", json.dumps({**info, "urls": [url], "paths": {"tmp": "/tmp"}})
    elif path == "/api/health" and "preview" in does:
        status, body = "200 OK", json.dumps({"healthy": True, **info})
    elif path == "/api/session":
        times, location = {"created": 1, "updated": 2}, {"directory": "/srv/web"}
        session = {
            "id": "ses_1",
            "title": "Hello",
            "time": times,
            "location": location,
        }
        status, body = "200 OK", json.dumps({"data": [session], "cursor": {}})
    elif path == "/api/event":
        status, kind, body = "200 OK", "text/event-stream", 'data: {"type":"server.connected","data":{}}\n\n'
    elif path == "/api/session/active":
        status, body = "200 OK", '{"data": {}}'
    elif path.endswith(("/request", "/form")):
        status, body = "200 OK", '{"data": []}'
    length = "" if "event" in kind else f"content-length: {len(body)}\r\n"
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{length}connection: close{asks}\r\n\r\n{body}"
    ).encode()
