"""A LAN for each test that wants one."""

from collections.abc import Iterator

import pytest

from support.lan import Lan, lan


@pytest.fixture
def network() -> Iterator[Lan]:
    """Three hosts, 10.77.0.1 to 10.77.0.3; the gateway is mostly the third."""
    with lan(3) as one:
        yield one
