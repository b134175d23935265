"""A transport whose import takes its time."""

import time

from kit.board import Board, BoardPlugin

_END = time.process_time() + 0.3
while time.process_time() < _END:
    pass

plugin = BoardPlugin("ImportsHeavily", Board)
