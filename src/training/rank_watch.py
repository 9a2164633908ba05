"""Several processes, one of which dies: the others say so and end, instead of waiting in a collective.

Two ways lead to the news. The process that started the others hears at once when one ends. Every rank besides
counts up a number in the process group's store and looks at the others': a machine that is gone, or a store that
is (it lives with rank 0), shows within `watchdog.rank_seconds`. Time in which this process was suspended is not
counted: a job that was suspended as a whole goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import distributed as dist

from src.runs import phases
from src.training.running_time import RunningTime

EXIT_LOST = 1
_LEFT = b"left"


class RankLost(RuntimeError):
    """Another rank is gone."""


class RankWatch(Callback):
    """Ends this process with code 1 when another rank is gone; see the module. Does nothing for a single process.

    seconds: without a sign of life until a rank counts as lost; None: only processes started by this one are watched.
    kept: tells what the run left.
    """

    def __init__(self, seconds: float | None, kept: Callable[[], str]) -> None:
        self.seconds = seconds
        self.kept = kept
        self._children: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._lost = threading.Lock()
        self._store: Any = None

    @contextmanager
    def leaving_together(self) -> Iterator[None]:
        """Around a fit: at its end all ranks wait for each other, so that none takes another's end for a death."""
        try:
            yield
            if self._store is not None:
                self._store.set(_key(dist.get_rank()), _LEFT)
                dist.barrier()
        except RuntimeError as error:
            if self._store is not None and connection_lost(error):
                raise RankLost(f"the connection to another rank is lost ({str(error).splitlines()[0]})") from error
            raise
        finally:
            self._over.set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        # A connection of its own: the main thread may be waiting on the first for long.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._store.set(_key(trainer.global_rank), b"0")
        dist.barrier()
        self._children = list(getattr(trainer.strategy.launcher, "procs", ()))
        for place, child in enumerate(self._children):
            self._start(self._wait_for, place + 1, child)
        if self.seconds is not None:
            self._store.set_timeout(timedelta(seconds=self.seconds))
            self._start(self._exchange_beats, trainer.global_rank, trainer.world_size, self.seconds)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, name=f"rank watch {arguments[0]}", daemon=True).start()

    def _wait_for(self, place: int, child: subprocess.Popen[bytes]) -> None:
        """Lightning's own observer ends everything as well, but up to five seconds later and without a word."""
        code = child.wait()
        if code and not self._over.is_set() and not self._has_left(place):
            self._end(f"local rank {place} ended with " + (f"signal {-code}" if code < 0 else f"code {code}"))

    def _has_left(self, rank: int) -> bool:
        try:
            return bool(self._store.get(_key(rank)) == _LEFT)
        except RuntimeError:
            return False

    def _exchange_beats(self, rank: int, ranks: int, seconds: float) -> None:
        others = [other for other in range(ranks) if other != rank]
        clock = RunningTime(min(5.0, seconds / 6))
        seen = dict.fromkeys(others, (b"", clock.seconds))
        beats, again = 0, False
        while not self._over.wait(clock.interval):
            beats += 1
            asked = time.monotonic()
            try:
                if again:
                    self._store = self._store.clone()
                self._store.set(_key(rank), str(beats))
                told = self._store.multi_get([_key(other) for other in others])
            except RuntimeError as error:
                if self._over.is_set():
                    return
                if not again and time.monotonic() - asked > seconds:
                    # A time-out: this process, and rank 0 with it, may have been suspended meanwhile.
                    again = True
                    continue
                self._end(f"rank 0 does not answer any more ({str(error).splitlines()[0]})")
                return
            again = False
            clock.tick()
            for other, beat in zip(others, told, strict=True):
                if beat != seen[other][0] or beat == _LEFT:
                    seen[other] = (beat, clock.seconds)
                elif clock.seconds - seen[other][1] > seconds:
                    self._end(f"rank {other} gave no sign of life for {seconds:g} s (watchdog.rank_seconds)")

    def _end(self, what: str) -> None:
        # Two threads may have news at once; the first one tells it.
        with self._lost:
            print(
                f"error: {what}; rank {dist.get_rank()} of {dist.get_world_size()} stops in: {phases.current()};"
                f" {self.kept()}",
                file=sys.stderr,
                flush=True,
            )
            for child in self._children:
                child.kill()
            os._exit(EXIT_LOST)


def connection_lost(error: RuntimeError) -> bool:
    """Whether a collective failed because its other side is gone; gloo has no exception of its own for it."""
    return isinstance(error, dist.DistError) or "closed by peer" in str(error) or "Connection reset" in str(error)


def _key(rank: int) -> str:
    return f"bicot/alive/{rank}"
