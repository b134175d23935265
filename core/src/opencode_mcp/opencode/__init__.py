"""The OpenCode HTTP API, and the only room that knows it.

Nothing is imported here: `opencode-connected` needs only `probe`, without the weight of an HTTP library.
"""
