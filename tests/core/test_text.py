"""What becomes of characters that steer a terminal or hide from a reader, and what is left as it is."""

import unicodedata

import pytest

from opencode_mcp import clean_line, clean_text
from opencode_mcp.text import clean_path, has_unsafe

BELOW_0X3000 = [chr(code) for code in range(0x3000)]
BEYOND = ["\ud800", "\udfff", "\ufeff", "\ufff9", "\ufffb", "\U000e0001", "\U000e0041", "\U000e007f"]
INVISIBLE = [
    *(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))),  # C0 and C1
    *"\u2028\u2029",  # line and paragraph separators
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",  # direction
    *"\u200b\u2060\u2061\u2064",  # without width
    *BEYOND,
]

ANSI = [
    "\x1b[31mred\x1b[0m",
    "\x1b[38;2;255;0;0mred\x1b[m",
    "\x1b[2J\x1b[Hred",
    "\x1b]0;a title\x07red",
    "\x1b]8;;https://example.org/\x1b\\red\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJmIH4=\x07red",
    "\x1bMred",
    "\x1b[?1049hred\x1b[?1049l",
]

KEPT = [
    "plain text, with punctuation: (a) [b] {c} <d> & \\ / | ~",
    "Grüße aus Köln, 東京, Ελλάδα, العربية, עברית",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈 and 👍🏽 and ✅",
    "नमस्ते क्‍ष می‌خواهم",  # ZWJ and ZWNJ are letters' own business
    "e\u0301 decomposed",
    "[31m is no escape sequence without ESC",
]


@pytest.mark.parametrize("character", INVISIBLE, ids=lambda one: f"U+{ord(one):04X}")
def test_what_steers_or_hides_is_unsafe_in_a_line_and_a_blank_stands_for_it(character: str):
    assert has_unsafe(f"a{character}b")
    assert clean_line(f"a{character}b") == "a b"


@pytest.mark.parametrize(
    "character", [one for one in INVISIBLE if one not in "\n\t"], ids=lambda one: f"U+{ord(one):04X}"
)
def test_what_steers_or_hides_is_dropped_from_a_text(character: str):
    assert clean_text(f"a{character}b") == "ab"


def test_nothing_unsafe_is_left_of_any_character():
    for character in (*BELOW_0X3000, *BEYOND):
        for text in (character, f"a{character}", f"{character}a", f"a{character}{character}a"):
            assert not has_unsafe(clean_line(text)), ascii(text)
            assert not has_unsafe(clean_text(text).replace("\n", "").replace("\t", "")), ascii(text)


def test_nothing_unsafe_is_left_of_sequences_within_sequences():
    for inner in ANSI:
        for text in (f"\x1b{inner}", f"\x1b[{inner}31m", f"\x1b]{inner}", f"\x9b{inner}\x9c"):
            assert not has_unsafe(clean_line(text)), ascii(text)
            assert not has_unsafe(clean_text(text)), ascii(text)


def test_every_letter_digit_mark_and_symbol_stays():
    for character in BELOW_0X3000:
        if unicodedata.category(character)[0] in "LNMPS":
            assert clean_line(f"a{character}b") == f"a{character}b", ascii(character)
            assert clean_text(f"a{character}b") == f"a{character}b", ascii(character)


@pytest.mark.parametrize("text", KEPT)
def test_what_people_write_stays_as_it_is(text: str):
    assert not has_unsafe(text)
    assert clean_line(text) == text
    assert clean_text(text) == text


@pytest.mark.parametrize("text", ANSI, ids=ascii)
def test_escape_sequences_go_as_a_whole(text: str):
    assert clean_line(text) == "red"
    assert clean_text(text) == "red"


def test_a_sequence_without_end_swallows_no_text():
    assert clean_line("\x1b]8;;https://example.org/ and more").endswith("https://example.org/ and more")
    assert clean_text("before \x1b[") == "before ["


def test_a_line_is_one_line_with_single_blanks():
    assert clean_line("  one\n\ttwo\r\nthree \u00a0 four ") == "one two three four"
    assert clean_line("\n\u200b ") == ""


def test_a_text_keeps_its_line_feeds_and_tabs():
    assert clean_text("def f():\n\treturn 1\n\n  # end \n") == "def f():\n\treturn 1\n\n  # end \n"
    assert clean_text("one\r\ntwo\rthree\x0bfour") == "one\ntwothreefour"


@pytest.mark.parametrize(("length", "limit"), [(200, 200), (1, 1), (5, 10)])
def test_what_fits_is_not_cut(length: int, limit: int):
    assert clean_line("x" * length, limit) == "x" * length
    assert clean_text("x" * length, limit) == "x" * length


@pytest.mark.parametrize("excess", [1, 2, 1_000, 1_000_000])
def test_what_does_not_fit_is_cut_to_the_limit_and_says_so(excess: int):
    for limit in (2, 10, 200):
        cut = "x" * (limit - 1) + "…"
        assert clean_line("x" * (limit + excess), limit) == cut
        assert clean_text("x" * (limit + excess), limit) == cut


def test_a_line_has_200_characters_at_most_and_a_text_as_many_as_it_has():
    assert len(clean_line("x" * 1_000)) == 200
    assert clean_text("x" * 1_000_000) == "x" * 1_000_000


def test_invisible_padding_does_not_push_a_line_out():
    assert clean_line("\u200b" * 100 + "here", 40) == "here"


@pytest.mark.parametrize("path", ["/srv/two  blanks", " /srv", "/srv/東京", "C:\\srv", "", "/" + "x" * 4095])
def test_a_path_that_is_safe_stays_as_it_is(path: str):
    assert clean_path(path) == path


def test_a_path_that_is_unsafe_or_too_long_becomes_a_safe_line():
    assert clean_path("/srv/\x1b[31mtwo  blanks\n") == "/srv/two blanks"
    assert clean_path("/" + "x" * 4096) == "/" + "x" * 4094 + "…"
