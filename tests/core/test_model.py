"""What an endpoint may say, and what no repr shows."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from opencode_mcp import Endpoint, Instance, Route, explain

GOOD = {"id": "1", "name": "laptop", "url": "http://127.0.0.1:4096"}

UNPRINTABLE = [
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x00b",
    "a\x7fb",
    "\x1b[31mred\x1b[0m",
    "\x9b31mred",
    "a\u2028b",
    "a\u202eb",
    "a\u2066b",
    "a\u200bb",
    "\ufeffa",
    "a\ud800b",
    "a\U000e0041b",
]


REASONS = (
    "Value error, must not hold control, line-breaking or invisible characters",
    "Input should be a valid string, unable to parse raw data as a unicode string",  # a lone surrogate
)


def endpoint(**fields: Any) -> Endpoint:
    return Endpoint.model_validate({**GOOD, **fields})


def refused(**fields: Any) -> str:
    """Return why an endpoint with these fields is refused."""
    with pytest.raises(ValidationError) as error:
        endpoint(**fields)
    (problem,) = error.value.errors()
    return problem["msg"]


def test_an_id_a_name_and_a_url_are_enough():
    one = Endpoint(id="1", name="laptop", url="http://127.0.0.1:4096")
    assert (one.hostname, one.directory, one.labels, one.vouched) == ("", "", {}, False)


@pytest.mark.parametrize("key", ["id", "name", "url"])
def test_without_one_of_them_there_is_none(key: str):
    with pytest.raises(ValidationError, match="Field required"):
        Endpoint.model_validate({name: value for name, value in GOOD.items() if name != key})


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://127.0.0.1:4096", "http://127.0.0.1:4096"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://127.0.0.1:65535", "http://127.0.0.1:65535"),
        ("http://[::1]:4096", "http://[::1]:4096"),
        ("http://[fe80::1%25eth0]:4096", "http://[fe80::1%25eth0]:4096"),
        ("http://laptop", "http://laptop"),
        ("https://laptop.example.org:443/", "https://laptop.example.org:443"),
        ("HTTPS://laptop:443", "https://laptop:443"),
        ("http://laptop:4096/behind/a/proxy/", "http://laptop:4096/behind/a/proxy"),
    ],
)
def test_a_url_names_a_host_and_maybe_a_port(url: str, kept: str):
    assert endpoint(url=url).url == kept


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:0",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:70000",
        "http://127.0.0.1:-1",
        "http://127.0.0.1:http",
        "http://127.0.0.1:\uff14\uff10\uff19\uff16",
        "http://[::1:4096",
        "http://",
        "http://:4096",
        "127.0.0.1:4096",
        "//127.0.0.1:4096",
        "ftp://127.0.0.1:4096",
        "file:///etc/passwd",
        "javascript:alert(1)",
        " http://127.0.0.1:4096",
        "http://127.0.0.1:4096 ",
        "http://two words:4096",
        "http://two\u3000words:4096",
        "http://two\\words:4096",
        "http://two\u2100words:4096",
        "",
    ],
)
def test_what_is_no_url_of_a_server_is_refused(url: str):
    wanted = "Value error, must look like http://host:port, with a port from 1 to 65535"
    assert refused(url=url) == wanted


@pytest.mark.parametrize("userinfo", ["me:hunter2@", "hunter2@", ":hunter2@", "@", ":@"])
def test_a_url_holds_no_credentials(userinfo: str):
    assert refused(url=f"http://{userinfo}laptop:4096") == "Value error, must not hold credentials"


@pytest.mark.parametrize("rest", ["?token=hunter2", "/?token=hunter2", "?", "#hunter2", "/#", "/#?"])
def test_a_url_holds_no_query_and_no_fragment(rest: str):
    assert refused(url=f"http://laptop:4096{rest}") == "Value error, must not hold a query or a fragment"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@laptop:4096",
        "http://me:hunter2/3@laptop:4096",
        "http://me:hunter2\u2100@laptop:4096",
        "http://laptop:4096?token=hunter2",
        "http://laptop:4096/\nhunter2",
    ],
)
def test_an_error_shows_nothing_of_a_url_that_holds_a_secret(url: str):
    with pytest.raises(ValidationError) as error:
        endpoint(url=url)
    assert "hunter2" not in f"{error.value} {error.value!r}"


@pytest.mark.parametrize("text", UNPRINTABLE, ids=ascii)
@pytest.mark.parametrize("key", ["id", "name", "url", "hostname", "directory"])
def test_every_field_is_one_line_of_text_that_shows_what_it_is(key: str, text: str):
    value = f"http://{text}:4096" if key == "url" else text
    assert refused(**{key: value}) in REASONS


@pytest.mark.parametrize("text", UNPRINTABLE, ids=ascii)
def test_labels_are_lines_of_text_too(text: str):
    for labels in ({text: "x"}, {"x": text}):
        with pytest.raises(ValidationError):
            endpoint(labels=labels)


@pytest.mark.parametrize(
    ("key", "most"), [("id", 512), ("name", 200), ("hostname", 255), ("directory", 4096)]
)
def test_every_field_has_a_bound(key: str, most: int):
    assert getattr(endpoint(**{key: "x" * most}), key) == "x" * most
    for length in (most + 1, 10_000, 1_000_000):
        assert f"at most {most} " in refused(**{key: "x" * length})


def test_a_url_has_a_bound():
    url = f"http://laptop/{'x' * 2034}"
    assert len(url) == 2048
    assert endpoint(url=url).url == url
    assert refused(url=f"{url}x") == "String should have at most 2048 characters"


def test_labels_have_bounds():
    assert len(endpoint(labels={str(number): "x" * 1024 for number in range(32)}).labels) == 32
    for labels in ({str(number): "" for number in range(33)}, {"x": "x" * 1025}, {"x" * 1025: "x"}):
        with pytest.raises(ValidationError):
            endpoint(labels=labels)


@pytest.mark.parametrize("key", ["id", "name"])
def test_an_id_and_a_name_are_not_empty(key: str):
    assert "at least 1 " in refused(**{key: ""})


@pytest.mark.parametrize("name", [" ", "   ", "\u00a0", "\u3000 "])
def test_a_name_is_not_blank(name: str):
    assert refused(name=name).startswith("String should match pattern")


@pytest.mark.parametrize("name", ["laptop-myproject", "Jürgens Rechner", "東京", "👩‍💻 laptop", "a/b:c"])
def test_a_name_may_be_in_any_writing(name: str):
    assert endpoint(name=name).name == name


@pytest.mark.parametrize("wrong", [7, True, None, ["x"], {"x": "y"}, b"\xff"])
@pytest.mark.parametrize("key", ["id", "name", "url", "hostname", "directory"])
def test_text_is_text(key: str, wrong: object):
    with pytest.raises(ValidationError):
        endpoint(**{key: wrong})


def test_an_unknown_field_is_refused():
    assert refused(password="hunter2") == "Extra inputs are not permitted"


def test_an_endpoint_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        endpoint().name = "other"


def test_two_that_say_the_same_are_the_same():
    assert endpoint() == endpoint()
    assert endpoint() != endpoint(directory="/elsewhere")


def test_the_headers_of_a_route_are_in_no_repr():
    route = Route(base_url="http://laptop:4096", headers={"authorization": "Bearer hunter2"})
    assert "laptop" in repr(route)
    assert "hunter2" not in f"{route!r} {route}"


def test_a_route_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Route(base_url="http://laptop:4096").base_url = "http://elsewhere:4096"  # pyright: ignore[reportAttributeAccessIssue] - that is the question


def test_a_sign_of_life_alone_makes_no_other_instance():
    quiet = Instance(name="laptop", transport="listed", endpoint=endpoint())
    heard = dataclasses.replace(quiet, last_seen=datetime(2025, 1, 2, tzinfo=UTC))
    assert quiet == heard
    assert quiet != dataclasses.replace(quiet, detail="gone")


def test_what_a_model_refuses_is_explained_in_one_line_without_the_values():
    wrong = {"id": "1", "name": "\x1b[2J", "url": "http://me:hunter2@host", "labels": {"room": 7}}
    with pytest.raises(ValidationError) as refused:
        Endpoint.model_validate(wrong)
    assert explain(refused.value) == (
        "name: must not hold control, line-breaking or invisible characters; url: must not hold credentials; "
        "labels.room: Input should be a valid string"
    )
