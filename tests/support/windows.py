"""`python -m support.windows PROGRAM`: runs a program in a process that lacks what Windows lacks.

Python's own modules and other people's are imported first, and stay those of this system: what they do on
Windows is their business, and this system's event loop needs its Unix sockets. Then `sys.platform` says
`win32`, and modules and names that exist on POSIX only are taken away: our code, imported afterwards, does
not find them. `os.name` stays, since pathlib goes by it.
"""

import contextlib
import errno
import importlib
import importlib.abc
import importlib.machinery
import os
import pkgutil
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

PACKAGES = ("opencode_mcp", "opencode_mcp_local_relay", "opencode_mcp_mdns", "opencode_mcp_tailscale")
# https://docs.python.org/3/library/: "Availability: Unix", or "not Windows"
_MODULES = ("curses", "fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
_SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
_FLAGS = {"O_APPEND", "O_CREAT", "O_EXCL", "O_RDONLY", "O_RDWR", "O_TRUNC", "O_WRONLY"}
_CALLS = re.compile(
    r"[fl]?chown|chroot|ctermid|fork(pty)?|killpg|mkfifo|mknod|nice|posix_\w+|p(read|write)v?|sched_\w+|sendfile|"
    r"(get|set|init)(e|re|res)?[gu]id|[gs]et(p?gid|pgrp|sid|groups|priority)|getgrouplist|getloadavg|openpty|"
    r"statvfs|sync|tc[gs]etpgrp|ttyname|uname|wait([34]|id)?|W[A-Z]+"
)
_SOCKETS = ("AF_NETLINK", "AF_PACKET", "SO_REUSEPORT", "SO_PEERCRED", "SO_BINDTODEVICE", "SCM_RIGHTS")


class _Absent(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in _MODULES:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def module_names() -> Iterator[str]:
    """Give the name of every module of all packages."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield name
        for module in pkgutil.walk_packages(package.__path__, f"{name}.", onerror=lambda _: None):
            if not module.name.endswith(".__main__"):
                yield module.name


def become() -> None:
    """Take away from this process what Windows has not; our own packages are as if never imported."""
    for name in list(module_names()):
        with contextlib.suppress(ImportError):  # whoever imports it afterwards hears of it
            importlib.import_module(name)
    for name in list(sys.modules):
        if name.partition(".")[0] in PACKAGES or name in _MODULES:
            del sys.modules[name]
    sys.meta_path.insert(0, _Absent())
    for name in [name for name in vars(signal) if name.startswith("SIG")]:
        if name not in _SIGNALS:
            delattr(signal, name)
    for name in [name for name in vars(os) if name.startswith("O_")]:
        if name not in _FLAGS:
            delattr(os, name)
    for name in [name for name in vars(os) if _CALLS.fullmatch(name)]:
        delattr(os, name)
    for name in _SOCKETS:
        if hasattr(socket, name):
            delattr(socket, name)
    for kind in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        kind.clear()
    errno.WSAEINVAL = 10022  # type: ignore[attr-defined]
    sys.platform = "win32"


if __name__ == "__main__":
    become()
    program = sys.argv.pop(1)
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
