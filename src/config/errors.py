"""The error of a user's wrong input."""

from __future__ import annotations


class UserError(Exception):
    """The user's input is wrong; the message names file or key, value and fix. Entry points exit with 2."""
