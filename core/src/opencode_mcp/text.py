"""Text from the network is data: bounded, and free of what steers a terminal or hides from a reader."""

import re

# C0 and C1 controls, the Unicode line separators, and the invisible characters that reorder or hide text
# (Unicode Technical Report 36, section 2.10; "Trojan Source", CVE-2021-42574).
_UNSAFE = (
    "\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_UNSAFE_IN_LINE = re.compile(f"[{_UNSAFE}]")
_UNSAFE_IN_TEXT = re.compile(f"[{_UNSAFE}]".replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def has_unsafe(line: str) -> bool:
    """Whether `line` holds a control, line-breaking, reordering or invisible character."""
    return _UNSAFE_IN_LINE.search(line) is not None


def clean_line(text: str, limit: int = 200) -> str:
    """Make one safe line of `text`: unsafe characters become spaces, at most `limit` characters stay."""
    if len(text) > 4 * limit:
        text = text[: 4 * limit]
    if not text.isprintable():
        text = _UNSAFE_IN_LINE.sub(" ", _ANSI.sub("", text))
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_path(path: str, limit: int = 4096) -> str:
    """Return `path` as it is, runs of spaces included, or as a safe line if it is unsafe or too long."""
    return clean_line(path, limit) if len(path) > limit or has_unsafe(path) else path


def printable(path: str, limit: int = 4096) -> str:
    """Return `path` if an endpoint can say it as it is, or nothing: a path that was changed is another."""
    return "" if len(path) > limit or has_unsafe(path) else path


def clean_text(text: str, limit: int | None = None) -> str:
    """Make `text` of several lines safe: line feeds and tabs stay, at most `limit` characters."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if _UNSAFE_IN_TEXT.search(text):
        text = _UNSAFE_IN_TEXT.sub("", _ANSI.sub("", text.replace("\r\n", "\n")))
    return text
