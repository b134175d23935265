"""A program that behaves as `opencode` does towards whoever starts it, and is there in 50 ms.

It runs with nothing but the standard library, so that none of it is imported from the project. What it does
is said by `LIGHT_DOES`, words with commas between:

* `exit=N`: end at once with N. `slow=SECONDS`: listen that much later.
* `deaf`: take connections and never answer. `stranger`: answer as some other web server. `locked=PASSWORD`:
  want a password of its own.
* `stubborn`: ignore every signal that can be ignored. `polite=N`: end with N on SIGTERM.
* `version=X`: say that, to `--version` too; from 2 on behave as OpenCode 2.x does: see `light_service`.
* `mute`: say no version. `sulky`: take its time to.
* `child`: start a process of its own; `child=stubborn`: one that ignores the signals too.

SIGUSR1 ends it with `code=N`, or 0. A file for each run in `LIGHT_RECORDS` says how it was started.
"""

import base64
import json
import os
import signal
import socket
import sys
import threading
import time

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


def main() -> None:
    does: dict[str, str] = {}
    for word in os.environ.get("LIGHT_DOES", "").split(","):
        name, _, value = word.partition("=")
        does[name] = value
    version = does.setdefault("version", "1.18.33")
    if sys.argv[-1] == "--version":
        with open(f"{os.environ['LIGHT_RECORDS']}/asked", "a") as file:  # noqa: PTH123
            file.write("--version\n")
        time.sleep(300 if "sulky" in does else 0)
        sys.exit("mute" in does or print(version))
    if version.startswith("2"):
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
        import light_service

        light_service.main(does)
        return
    obey(does)
    if "child" in does:
        trap = "trap '' TERM HUP INT QUIT; " if does["child"] == "stubborn" else ""
        os.posix_spawn("/bin/sh", ["sh", "-c", f"{trap}exec sleep 300"], os.environ)
    record()
    if "exit" in does:
        sys.exit(int(does["exit"]))
    time.sleep(float(does.get("slow", 0)))
    listen(does)


def obey(does: dict[str, str]) -> None:
    for number in ENDING:
        if "stubborn" in does:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if "polite" in does:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(int(does["polite"])))
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(int(does.get("code", 0))))


def record() -> None:
    told = {
        "argv": sys.argv[1:],
        "cwd": os.getcwd(),  # noqa: PTH109 - pathlib takes its time to be imported
        "environment": dict(os.environ),
        "pid": os.getpid(),
        "stdin": os.path.realpath("/proc/self/fd/0"),
    }
    path = f"{os.environ['LIGHT_RECORDS']}/{os.getpid()}.json"
    with open(f"{path}.part", "w") as file:  # noqa: PTH123
        json.dump(told, file)
    os.replace(f"{path}.part", path)  # noqa: PTH105


def option(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def listen(does: dict[str, str]) -> None:
    with socket.create_server((option("--hostname", "127.0.0.1"), int(option("--port", "4096")))) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection, does), daemon=True).start()


def serve(connection: socket.socket, does: dict[str, str]) -> None:
    with connection:
        asked = b""
        while b"\r\n\r\n" not in asked:
            more = connection.recv(4096)
            if not more:
                return
            asked += more
        if "deaf" in does:
            time.sleep(300)
        connection.sendall(answer(asked.decode("latin-1"), does))


def answer(asked: str, does: dict[str, str]) -> bytes:
    status, kind, body, asks = "200 OK", "application/json", "", ""
    password = does.get("locked") or os.environ.get("OPENCODE_SERVER_PASSWORD")
    wanted = base64.b64encode(f"opencode:{password}".encode()).decode()
    if "stranger" in does:
        kind, body = "text/html", "<html>Welcome</html>"
    elif password and f"basic {wanted}".lower() not in asked.lower():
        status, asks = "401 Unauthorized", '\r\nwww-authenticate: Basic realm="Secure Area"'
    elif asked.startswith("GET /global/health"):
        body = json.dumps({"healthy": True, "version": "1.18.33"})
    else:
        status = "404 Not Found"
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close{asks}"
    )
    return f"{head}\r\n\r\n{body}".encode()


if __name__ == "__main__":
    main()
