"""A visitor's request, checked, since a page's fields come from outside."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from src.data.words import problem_of

PROMPT_LETTERS = 1000
GUIDANCE = (1.0, 15.0)
TEMPERATURE = (0.1, 2.0)
CANDIDATES = (1, 16)
SEED = (0, 2**31 - 1)


@dataclass(frozen=True, slots=True)
class Request:
    """One requested picture: candidates are painted, the best by the experts' total is shown.

    Raises:
        ValueError: for a field that is empty, too long or out of range, or is not a number.
    """

    prompt: str
    guidance_scale: float
    temperature: float
    seed: int = 0
    candidates: int = 1

    def __post_init__(self) -> None:
        text = self.prompt.strip() if isinstance(self.prompt, str) else ""
        if problem := problem_of(text):
            raise ValueError(f"prompt: {problem}; expected some words")
        if len(text) > PROMPT_LETTERS:
            raise ValueError(f"prompt: {len(text)} letters; expected at most {PROMPT_LETTERS}")
        object.__setattr__(self, "prompt", text)
        for name, (low, high), whole in (
            ("guidance_scale", GUIDANCE, False),
            ("temperature", TEMPERATURE, False),
            ("seed", SEED, True),
            ("candidates", CANDIDATES, True),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
                raise ValueError(f"{name}: {value!r} is not a number; expected one in [{low}, {high}]")
            if not low <= value <= high or (whole and value != int(value)):
                raise ValueError(
                    f"{name}: {value}; expected {'an integer' if whole else 'a number'} in [{low}, {high}]"
                )
            object.__setattr__(self, name, int(value) if whole else float(value))
