"""The instance's side, `opencode-connected`: start OpenCode, put it on the map, keep it there, leave nothing.

How it is announced is the transports' work; nothing in here knows any of them.
"""
