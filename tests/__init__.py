"""Tests; a worker process that starts in one of them needs the import hooks of `src` first, too."""

import src  # noqa: F401
