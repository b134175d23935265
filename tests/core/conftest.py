"""Tests that want `make_fake` run on every generation of OpenCode."""

from support.generations import generate as pytest_generate_tests

__all__ = ["pytest_generate_tests"]
