"""The model behind the page: one request at a time, in a separate thread that a visitor who leaves cannot block."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from src.demo.request import Request
from src.demo.stream import Look, looks
from src.policies.prompt_checks import unknown_words
from src.rewards.ensemble import RewardEnsemble
from src.rewards.entries import scores
from src.rollout.noise import rollout_key
from src.trained import settings_of
from src.values import PromptRecord

if TYPE_CHECKING:
    from src.policies.base import Decoder, Policy
    from src.policies.prompt_room import PromptRoom

BASE, TRAINED = "base", "trained"


@dataclass(frozen=True, slots=True)
class Result:
    """The scores of a side's pictures: `entries` as from `rewards.entries.scores`, `best` the one that is kept."""

    entries: tuple[dict[str, Any], ...]
    best: int


@dataclass(frozen=True, slots=True)
class Frame:
    """The next thing the page shows: its side, its progress, and finally the result."""

    side: str
    look: Look
    result: Result | None = None


class Studio:
    """Paints for visitors, one after the other, with the base and, if there is one, the trained model on it.

    policy: on its device, in evaluation mode. trained: whether `policy` is more than its base. sampling: as
    `src.trained.choose_model` gives it; a visitor's guidance and temperature come before it. every: as in `looks`.
    room: how long a prompt may be, and which words the model knows; None: unknown.
    """

    def __init__(
        self,
        policy: Policy,
        rewards: RewardEnsemble,
        sampling: dict[str, Any],
        trained: bool,
        every: int | None = None,
        room: PromptRoom | None = None,
    ) -> None:
        self.sides = (BASE, TRAINED) if trained else (BASE,)
        self.sampling = sampling
        self._policy, self._rewards, self._every = policy, rewards, every
        self._lock = threading.Lock()
        self._room = room

    def check(self, prompt: str) -> str | None:
        """A warning of words the model does not know; raises ValueError for a prompt that is longer than it reads."""
        if self._room is not None and (problem := self._room.problem(prompt)):
            raise ValueError(problem)
        return unknown_words(self._room, [prompt])

    def paint(self, request: Request) -> Iterator[Frame]:
        """Frames of every side, in turn; an error inside is raised here.

        The work runs in a separate thread, which alone holds the lock. An iterator would hold it as long as no frame
        is requested. The work stops when the iterator is closed.
        """
        frames: queue.SimpleQueue[Frame | Exception | None] = queue.SimpleQueue()
        left = threading.Event()

        def work() -> None:
            try:
                with self._lock:
                    for frame in self._frames(request):
                        if left.is_set():
                            return
                        frames.put(frame)
                frames.put(None)
            except Exception as error:
                frames.put(error)

        threading.Thread(target=work, name="demo painter", daemon=True).start()
        try:
            while (frame := frames.get()) is not None:
                if isinstance(frame, Exception):
                    raise frame
                yield frame
        finally:
            left.set()

    def _frames(self, request: Request) -> Iterator[Frame]:
        """The same, in the thread that works."""
        sampling = self.sampling | {
            "guidance_scale": request.guidance_scale,
            "plan_temperature": request.temperature,
            "image_temperature": request.temperature,
        }
        settings = settings_of(sampling)
        keys = [rollout_key(request.seed, request.prompt, 0, number) for number in range(request.candidates)]
        for side in self.sides:
            with self._decoder(side) as decoder:
                frame = None
                for look in looks(self._policy, decoder, request.prompt, keys, settings, self._every):
                    frame = Frame(side, look)
                    if not look.finished:
                        yield frame
                assert frame is not None
                assert frame.look.pixels is not None
            yield replace(frame, result=self._judged(request.prompt, frame.look.pixels))

    def _decoder(self, side: str) -> AbstractContextManager[Decoder]:
        """The base's weights are the policy's reference; without training, they are the policy's own."""
        if side == BASE and TRAINED in self.sides:
            return self._policy.reference()
        return nullcontext(self._policy.decoder())

    def _judged(self, prompt: str, pixels: Tensor) -> Result:
        entries = tuple(scores(self._rewards, pixels, [PromptRecord(prompt)] * len(pixels)))
        rewards = [entry.get("reward", float("-inf")) for entry in entries]
        return Result(entries, rewards.index(max(rewards)))
