"""What a report does not tell strangers, in whichever form it comes."""

import base64
import time
from urllib.parse import quote

import pytest

from opencode_mcp.doctor.redact import Redactor
from opencode_mcp.settings import sounds_secret

SECRET = "s3cr3t ca'nary\\\x01"


@pytest.fixture
def redactor(monkeypatch: pytest.MonkeyPatch) -> Redactor:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("OPENCODE_SERVER_PASSWORD", SECRET)
    monkeypatch.setenv("RELAY_SSH_CMD", "ssh -i /keys/a-long-secret-word me@relay")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.delenv("OPENCODE_SERVER_USERNAME", raising=False)
    monkeypatch.setenv("RELAY_LOGINS", "first-key,second-key; third-key\tx,four")
    redactor = Redactor()
    redactor.declare(["RELAY_SSH_CMD", "RELAY_LOGINS", "NOT_SET"])
    return redactor


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        repr(SECRET),
        quote(SECRET, safe=""),
        base64.b64encode(f"opencode:{SECRET}".encode()).decode(),
        " ".join(SECRET.replace("\x01", " ").split()),
        "ssh -i /keys/a-long-secret-word me@relay",
        "/keys/a-long-secret-word",
        "first-key",
        "second-key",
        "third-key",
        base64.b64encode(b"opencode:second-key").decode(),
    ],
)
def test_a_secret_is_hidden_in_every_form(redactor: Redactor, form: str):
    shown = redactor.line(f"It said <{form}>.")
    assert shown.replace("'", "").replace('"', "") == "It said <[secret]>."


def test_a_secret_that_was_cut_off_is_hidden_as_well(redactor: Redactor):
    assert (
        redactor.line("It said s3cr3t ca… To mend it: nothing.") == "It said [secret]… To mend it: nothing."
    )
    assert redactor.line("It said s3c… and so on.") == "It said s3c… and so on."
    assert redactor.line("… s3cr3s3cr3t… and second-k… …") == "… s3cr3[secret]… and [secret]… …"


def test_many_cuts_and_a_long_secret_take_no_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LONG_TOKEN", "ab" * 2_000 + "c")
    redactor = Redactor()
    lines = [f"{number} said {'ab' * 40}… and so on." for number in range(1_000)]
    began = time.process_time()
    assert all("said [secret]… and" in redactor.line(line) for line in lines)
    assert time.process_time() - began < 1.0  # 30 times less; once per length of the secret it is 10 s


def test_what_is_too_short_to_be_told_from_other_words_is_left(redactor: Redactor):
    assert redactor.line("That is true.") == "That is true."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada", "~"),
        ("file:///home/ada/x", "file://~/x"),
        ("in /home/ada/x and '/home/ada'", "in ~/x and '~'"),
        ("/home/adam/x", "/home/adam/x"),
        ("/mnt/home/ada/x", "/mnt/home/ada/x"),
        ("http://me:password@host:1/x", "http://[secret]@host:1/x"),
        ("http://me:pass/word@host:1/x", "http://[secret]@host:1/x"),
        ("to http://user:p@ss@host, too", "to http://[secret]@host, too"),
        ("a\x1b[31mb\nc\u202ed", "ab c d"),
    ],
)
def test_the_home_directory_logins_in_addresses_and_control_characters_are_taken_out(
    redactor: Redactor, text: str, shown: str
):
    assert redactor.line(text) == shown


def test_a_line_is_bounded_after_secrets_were_taken_out(redactor: Redactor):
    shown = redactor.line("x" * 990 + SECRET + "y" * 100_000)
    assert len(shown) == 1000
    assert "s3cr" not in shown


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("GITHUB_TOKEN", True),
        ("DB_PASSWD", True),
        ("OPENAI_API_KEY", True),
        ("TS_AUTHKEY", True),
        ("LIGHTHOUSE_CREDENTIALS", True),
        ("GITHUB_TOKEN_FILE", False),
        ("MDNS_CREDENTIALS_FOR", False),
        ("PATH", False),
        ("SHELL", False),
    ],
)
def test_names_that_sound_like_secrets_are_known(name: str, secret: bool):
    assert sounds_secret(name) is secret
