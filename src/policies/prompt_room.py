"""How long a prompt may be: the model's positions less what the two levels need for themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.policies.checkpoint import open_without_weights
from src.policies.contexts import encode_image_context, encode_plan_context

NEUTRAL = "a"


@dataclass(frozen=True, slots=True)
class PromptRoom:
    """What a model can read of a prompt.

    positions: tokens the model was made for, in one row. image_tokens: of an image. plan_tokens: of the longest plan.
    """

    tokenizer: Any
    positions: int
    image_tokens: int
    plan_tokens: int
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "longest", self.positions - self._taken())

    def _taken(self) -> int:
        """What templates, plan and image take of the positions, in the level that takes more."""
        plan = encode_plan_context(self.tokenizer, [NEUTRAL]).ids.shape[1] - 1
        # Which id begins an image is all the same for the length.
        image = encode_image_context(self.tokenizer, [NEUTRAL], [NEUTRAL], 0).ids.shape[1] - 2
        return max(plan + self.plan_tokens, image + self.plan_tokens + self.image_tokens)

    def problem(self, prompt: str) -> str | None:
        """What is wrong with the length of a prompt, None if it fits."""
        # No tokenizer makes more tokens of a text than it has bytes, but for letters that a normaliser takes apart.
        if prompt.isascii() and len(prompt) <= self.longest:
            return None
        tokens = len(self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
        if tokens <= self.longest:
            return None
        taken = self.positions - self.longest
        if self.longest < 1:
            return (
                f"the model has {self.positions} positions, and none is left for a prompt: max_plan_tokens"
                f" ({self.plan_tokens}), an image's {self.image_tokens} tokens and the templates take {taken};"
                " lower max_plan_tokens"
            )
        return (
            f"the prompt has {tokens} tokens, at most {self.longest} fit: of the model's {self.positions} positions the"
            f" templates, a plan of up to {self.plan_tokens} tokens and an image of {self.image_tokens} take"
            f" {taken}; shorten it"
        )

    def unknown_words(self, prompts: Iterable[str]) -> Counter[str]:
        """How often each word stands in `prompts` that the tokenizer has no token for; empty for one that spells all.

        A byte-level tokenizer knows every word.
        """
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown is None or unknown not in self._ids("\u2603 xqzj \U0001f9ff"):
            return Counter()
        words = Counter(word for prompt in prompts for word in prompt.split())
        found: Counter[str] = Counter()
        distinct = list(words)
        for start in range(0, len(distinct), 10_000):
            part = distinct[start : start + 10_000]
            read = self.tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for word, ids, spans in zip(part, read["input_ids"], read["offset_mapping"], strict=True):
                places = [span for id_, span in zip(ids, spans, strict=True) if id_ == unknown]
                for begin, end in _joined(places):
                    found[word[begin:end]] += words[word]
        return found

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans with those that touch made one: of a foreign word each letter may be unknown."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def room_of_checkpoint(folder: Path, plan_tokens: int) -> PromptRoom:
    """The room of a Janus checkpoint directory of either layout; no weight is read.

    Raises:
        CheckpointError: if it cannot be used.
    """
    _, config, tokenizer = open_without_weights(folder)
    return PromptRoom(
        tokenizer,
        config.text_config.max_position_embeddings,
        config.vq_config.num_patches**2,
        plan_tokens,
    )
