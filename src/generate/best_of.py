"""Best-of-N: keeps one of several candidates for a picture, by the experts' total or by one expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from src.config.errors import UserError
from src.rewards.entries import Entry

Picture = TypeVar("Picture")
TOTAL = "reward"


@dataclass(frozen=True, slots=True)
class BestOf:
    """How a picture is chosen among its candidates.

    of: candidates per picture; by: the expert that chooses, None: the total of all. sign: -1 where the lowest score of
    `by` is the best. Of equally good candidates the first is kept.
    """

    of: int = 1
    by: str | None = None
    sign: float = 1.0

    def __post_init__(self) -> None:
        if self.of < 1:
            raise ValueError(f"best_of={self.of}: expected an integer >= 1")
        if self.sign not in (-1.0, 1.0):
            raise ValueError(f"sign={self.sign}: expected 1 or -1")

    def score(self, entry: Mapping[str, Any]) -> float | None:
        """The score of `entry` that decides; None if it was not scored."""
        return entry.get(TOTAL) if self.by is None else entry["scores"].get(self.by)

    def kept(self, pictures: Iterable[tuple[Entry, Picture]]) -> Iterator[tuple[Entry, Picture]]:
        """The best of every `of` consecutive pictures; its entry lists the others under ``best_of``.

        Raises:
            UserError: if no candidate has the score to choose by.
        """
        if self.of == 1:
            yield from pictures
            return
        best: tuple[Entry, Picture] | None = None
        scores: list[float | None] = []
        for entry, picture in pictures:
            score = self.score(entry)
            if score is not None and all(other is None or self.sign * score > self.sign * other for other in scores):
                best = entry | {"candidate": len(scores)}, picture
            scores.append(score)
            if len(scores) < self.of:
                continue
            if best is None:
                raise UserError(
                    f"best_of={self.of}: {self.by or 'no expert'} has {'no score' if self.by else 'a score'} for"
                    f" {entry['prompt']!r}, so that there is nothing to choose by; leave best_of out, or give a"
                    " prompts_file=PATH.jsonl that says what is asked for"
                )
            chosen = best[0] | {"best_of": {"of": self.of, "by": self.by or TOTAL, "scores": scores}}
            yield chosen, best[1]
            best, scores = None, []


def check_best_of(of: int, by: str | None, experts: Iterable[str]) -> None:
    """Raise UserError for an expert that does not exist, or one that has nothing to choose from."""
    known = list(experts)
    if by is not None and by not in known:
        raise UserError(f"best_of_by={by}: no such expert; there are {', '.join(known)}")
    if by is not None and of == 1:
        raise UserError(
            f"best_of_by={by}: there is only one candidate per picture; add best_of=8 or leave best_of_by out"
        )
