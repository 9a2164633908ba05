"""Triton kernels run interpreted in these tests: on a CPU, slowly, without a compiler or a GPU."""

from __future__ import annotations

import os

# Read when triton is first imported; tests/conftest.py says the same for runs that import it earlier.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from kernels import Operations, operations


@pytest.fixture(scope="session")
def triton_ops() -> Operations:
    """The Triton operations, interpreted."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(tl.max, InterpretedFunction):
        pytest.fail("triton was imported before TRITON_INTERPRET=1 was set; tests/conftest.py has to set it first")
    return operations("triton", "cpu")
