"""`TransportSuite`: the standard tests of a transport, for its author to subclass."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from opencode_mcp.testing._announcing import AnnouncingTests
from opencode_mcp.testing._configuring import ConfiguringTests
from opencode_mcp.testing._connecting import ConnectingTests
from opencode_mcp.testing._finding import FindingTests
from opencode_mcp.testing._hostile import HostileTests
from opencode_mcp.testing._secrets import SecretTests
from opencode_mcp.testing._trial import Trial, fail
from opencode_mcp.testing._under_test import Publisher, TransportUnderTest

_ALTOGETHER = ("xfail", "skip", "skipif")
"""Marks that would excuse all tests at once, on a class or a module."""
_GUARD = "test_standard_tests_are_overridden_only_with_a_reason"


class TransportSuite(
    AnnouncingTests, HostileTests, SecretTests, ConnectingTests, FindingTests, ConfiguringTests
):
    """What every transport has to do. Subclass it, and define the two fixtures.

    A test that a transport cannot pass is overridden, and marked with `pytest.mark.xfail(reason=...)` and no
    condition; a standard test sees to that. What a transport can do besides is claimed by properties, all
    False by default: `watches_natively`, `announces` and `expires`. What is not claimed is skipped.

    Example:
        ```python
        class TestStatic(TransportSuite):
            @pytest.fixture
            def transport(self, tmp_path: Path) -> TransportUnderTest:
                return TransportUnderTest("static", {"STATIC_FILE": str(tmp_path / "instances.toml")})

            @pytest.fixture
            def publisher(self, tmp_path: Path) -> Publisher:
                return FilePublisher(tmp_path / "instances.toml")
        ```
    """

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def transport(self) -> TransportUnderTest:
        """The transport; to be defined."""
        raise NotImplementedError(f"{type(self).__name__} has no fixture `transport`: see TransportSuite.")

    @pytest.fixture
    def publisher(self) -> Publisher:
        """What makes the transport find something; to be defined."""
        raise NotImplementedError(f"{type(self).__name__} has no fixture `publisher`: see TransportSuite.")

    @pytest.fixture(scope="session")
    @classmethod
    def anyio_backend(cls) -> str:
        """Core runs on asyncio."""
        return "asyncio"

    @pytest.fixture
    async def trial(
        self,
        transport: TransportUnderTest,
        publisher: Publisher,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> AsyncGenerator[Trial]:
        """One run of the transport, in a world without the instances of whoever runs the tests."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-of-the-suite"))
        patience, rescan = self.patience_seconds, self.rescan_seconds
        async with Trial(transport, publisher, patience=patience, rescan_seconds=rescan) as trial:
            yield trial

    async def test_standard_tests_are_overridden_only_with_a_reason(self) -> None:
        """A deviation stands in the open: nothing is left out or softened in silence."""
        for name in _standard_tests():
            ours, theirs = getattr(TransportSuite, name), getattr(type(self), name, None)
            if theirs is None:
                fail(
                    f"The standard test {name} was deleted. If the transport cannot pass it, override it and "
                    "mark it with pytest.mark.xfail(reason=...)."
                )
            if theirs is not ours and not _is_excused(theirs):
                fail(
                    f"The standard test {name} was overridden. Mark it with pytest.mark.xfail(reason=...), "
                    "without a condition, or call your own test something else."
                )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Refuse a mark that would excuse all tests at once, also the one above.

        Raises:
            UsageError: The class or its module is marked with `xfail`, `skip` or `skipif`.
        """
        for node, mark in metafunc.definition.iter_markers_with_node():
            if mark.name in _ALTOGETHER and node is not metafunc.definition:
                raise pytest.UsageError(
                    f"{node.name} is marked with {mark.name}, and with it every standard test. Override "
                    "those that the transport cannot pass, and mark each with its reason. Where it cannot be "
                    "tested at all, call pytest.skip in the fixture `transport`."
                )

    def __init_subclass__(cls) -> None:
        """See to it that the guard itself stays.

        Raises:
            TypeError: It was overridden or deleted.
        """
        super().__init_subclass__()
        if getattr(cls, _GUARD, None) is not getattr(TransportSuite, _GUARD):
            raise TypeError(f"{cls.__name__} overrides {_GUARD}, which no transport has a reason for.")


def _standard_tests() -> list[str]:
    return [name for name in dir(TransportSuite) if name.startswith("test_")]


def _is_excused(test: object) -> bool:
    marks: list[pytest.Mark] = getattr(test, "pytestmark", [])
    return any(
        mark.name == "xfail"
        and str(mark.kwargs.get("reason", "")).strip()
        and not (mark.args or "condition" in mark.kwargs)
        for mark in marks
    )
