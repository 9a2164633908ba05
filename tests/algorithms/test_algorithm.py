"""Variants are found by the name of their file, and say who they are."""

from __future__ import annotations

import pytest

from src.algorithms import load, names


def test_every_variant_loads_under_its_own_name() -> None:
    assert "grpo" in names()
    for name in names():
        assert load(name).name == name


def test_an_unknown_variant_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"algorithm\.name=ppo: no such variant; choose one of .*grpo"):
        load("ppo")
