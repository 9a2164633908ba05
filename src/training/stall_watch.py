"""A process beside a run: ends it when not even its watchdog gives a sign of life. Run as a script, with Python alone.

Code that hangs inside C without giving Python's lock back stops every thread of the run. This process hears from the
watchdog's thread over a pipe; after SECONDS of silence it sends SIGABRT, on which `faulthandler` writes every thread's
stack, lock or no lock. Time in which this process or the run was suspended is not counted. It ends when the run does.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time


def stopped(pid: int) -> bool:
    """Whether a process is suspended (Ctrl-Z, SIGSTOP, a debugger); False where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


def watch(pid: int, seconds: float) -> None:
    """Until the pipe ends; then, or after `seconds` of silence of a running process, return."""
    interval, silent, last = seconds / 64, 0.0, time.monotonic()
    while True:
        ready, _, _ = select.select([0], [], [], interval)
        now = time.monotonic()
        if os.getppid() != pid:  # the run is gone; its number may be another's
            return
        if ready:
            if not os.read(0, 4096):
                return
            silent = 0.0
        elif not stopped(pid):
            silent += min(now - last, 4 * interval)
        last = now
        if silent > seconds:
            print(
                f"error: Python itself gave no sign of life for {silent:.0f} s; the run is ended; the stacks:",
                file=sys.stderr,
                flush=True,
            )
            if hasattr(resource, "prlimit"):  # a core file of a run may fill the disk
                resource.prlimit(pid, resource.RLIMIT_CORE, (0, resource.prlimit(pid, resource.RLIMIT_CORE)[1]))
            os.kill(pid, signal.SIGABRT)
            return


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the run, whose end is this one's
    watch(int(sys.argv[1]), float(sys.argv[2]))
