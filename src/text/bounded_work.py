"""Work defined by an outside file, done in a child process that the kernel ends after some seconds.

A chat template's loops can run forever, its products can fill any memory, and a pattern can take ages to fail on a
name of forty letters. None of this can be stopped from inside this process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("bounded_child.py")
# What a template of a few lines, or a pattern on all modules of a model, may take: seconds of computing, bytes.
SECONDS, BYTES = 5, 2**29
# By the clock, on a machine that is busy with other things.
CLOCK = 60


class Stopped(ValueError):
    """The work could not be done, or not within the limits; the message says why, not what it was."""


def answered(work: str, **request: Any) -> dict[str, Any]:
    """The child's answer to a request; `src.text.bounded_child` has the kinds of work.

    Raises:
        Stopped: if the template or pattern is damaged, or exceeds a limit.
    """
    asked = {"work": work, "seconds": SECONDS, "bytes": BYTES, **request}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(CHILD)],
            input=json.dumps(asked),
            capture_output=True,
            encoding="utf-8",
            timeout=CLOCK,
        )
    except subprocess.TimeoutExpired:
        raise Stopped(f"runs for more than {CLOCK} seconds") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        # Ended by the kernel, or by a stack that its own calls have used up.
        raise Stopped(f"was stopped: it runs for more than {SECONDS} seconds, or uses up the memory") from None
    if "error" in answer:
        raise Stopped(answer["error"])
    return answer
