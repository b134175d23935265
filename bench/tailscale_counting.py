"""Counts the TCP connections that this process has at once, those that it waits for among them."""

import socket
from typing import Any


class Counting:
    """Counts from when it is made.

    Attributes:
        most: The most there were.
    """

    def __init__(self) -> None:
        self.most = 0
        self._open: set[int] = set()
        kind: Any = socket.socket
        connect, close = kind.connect, kind.close

        def connecting(one: socket.socket, address: Any) -> Any:
            if isinstance(address, tuple):
                self._open.add(id(one))
                self.most = max(self.most, len(self._open))
            return connect(one, address)

        def closing(one: socket.socket) -> None:
            self._open.discard(id(one))
            close(one)

        kind.connect, kind.close = connecting, closing
