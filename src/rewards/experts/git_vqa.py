"""GIT, fine-tuned to answer questions about pictures, as a reward expert: does the picture show what is described?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.rewards.aspects import aspect_of
from src.rewards.vision.frozen import FrozenModelExpert
from src.rewards.vision.preprocess import CLIP_MEAN, CLIP_STD, fill_and_crop, normalise
from src.rewards.vision.pretrained import find_pretrained
from src.rewards.vision.weights import as_dtype, load_complete
from src.text.user_text import as_words
from src.values import PromptRecord


def questions_of(record: PromptRecord) -> tuple[str, ...]:
    """For each noun with its attribute, or else for each noun: "red cow?"."""
    return tuple(f"{noun}?" for noun in record.attribute_nouns or record.nouns)


class GitVqa(FrozenModelExpert):
    """Asks GIT (large, fine-tuned on VQAv2) about each object, attribute included; in [0, 1], higher is better.

    score = mean over the record's attribute nouns, else its nouns, of P(yes) / (P(yes) + P(no)), the next-token
    probabilities after [CLS] and the question "{noun}?" without [SEP]. Not applicable to prompts that are
    scored for a relation or for counts (`aspects.aspect_of`), nor to those that name nothing to ask about. Else as in
    the released code of T2I-R1 (arXiv 2505.00703).

    faithful: relations and counts score 0, and prompts that name nothing 1, instead of not applicable, as released.

    Args:
        path: a GIT directory in transformers' format; None: `repository` from the hub or its cache.
        repository: where the weights are published.
        dtype: of the network: float32, bfloat16 or float16.
        batch_size: images per forward pass; each is encoded once, however many questions it has.
        faithful: score as released.
    """

    name = "vqa"
    score_range = (0.0, 1.0)
    higher_is_better = True
    full_state_update = False
    needs = "nouns or attr_nouns, and not a relation or counts alone"

    def __init__(
        self,
        path: str | Path | None = None,
        repository: str | None = "microsoft/git-large-vqav2",
        dtype: str = "float32",
        batch_size: int = 8,
        faithful: bool = False,
        **kwargs: Any,
    ) -> None:
        from transformers import AutoTokenizer, GitForCausalLM

        computes_in = as_dtype(dtype)
        folder = find_pretrained("git", path, repository)
        super().__init__(lambda: load_complete(GitForCausalLM, folder, computes_in), batch_size, **kwargs)
        self.tokenizer, self.faithful = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
            faithful,
        )
        self.yes, self.no = (self.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))

    def applicable(self, record: PromptRecord) -> bool:
        """Whether the record is about objects and attributes alone, and names one; with `faithful` always."""
        return self.faithful or (aspect_of(record) == "object" and bool(questions_of(record)))

    def score_batch(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """Scores (N,) float32."""
        about_objects = [aspect_of(record) == "object" for record in records]
        scores = torch.tensor(about_objects, device=pixels.device).float()
        rows = [row for row, record in enumerate(records) if about_objects[row] and questions_of(record)]
        if rows:
            scores[rows] = self.ask(pixels[rows], [questions_of(records[row]) for row in rows])
        return scores

    def ask(self, pixels: Tensor, questions: Sequence[Sequence[str]]) -> Tensor:
        """The mean probability of "yes" over an image's questions: (N,) float32 in [0, 1].

        pixels (N, 3, H, W) in [0, 1]; questions: one and more for each image.
        """
        logits, asked = self.answers(pixels, questions)
        # A ratio of two softmax probabilities: the other tokens cancel out.
        yes = (logits[..., self.yes] - logits[..., self.no]).sigmoid()
        return (yes * asked).sum(0) / asked.sum(0)

    def answers(self, pixels: Tensor, questions: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """The next-token logits (R, N, V) float32 after question r of image n, and whether it has one (R, N) bool.

        pixels (N, 3, H, W) in [0, 1]; R is the largest number of questions.
        """
        ids, lengths, asked = (part.to(pixels.device) for part in self._tokens(questions))
        pixels = fill_and_crop(pixels, self.model.config.vision_config.image_size)
        pixels = normalise(pixels, CLIP_MEAN, CLIP_STD)
        # The network repeats its image features for further rows of text, so rows go round by round. Text attends
        # to the text before it alone: what pads a row at its end changes nothing it is asked for.
        hidden = self.model.git(
            input_ids=ids.flatten(0, 1), pixel_values=pixels.to(self.model.dtype), use_cache=False
        ).last_hidden_state
        last = hidden.shape[1] - ids.shape[-1] + lengths.flatten() - 1
        # Only there: logits of all positions, one for each patch among them, would take gigabytes.
        logits = self.model.output(hidden[torch.arange(len(last), device=last.device), last]).float()
        return logits.unflatten(0, asked.shape), asked

    def _tokens(self, questions: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor, Tensor]:
        """R rounds of one question an image: ids (R, N, T), lengths (R, N), and which are real, (R, N) bool.

        ids are [CLS] and the question's tokens, padded at the end.
        """
        start = self.tokenizer.cls_token_id
        words = [as_words(self.tokenizer, few) for few in questions]
        texts = [[self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in few] for few in words]
        rounds = max(map(len, texts))
        rows = [[[start, *few[i]] if i < len(few) else [start] for few in texts] for i in range(rounds)]
        width = max(len(row) for one in rows for row in one)
        ids = torch.full((rounds, len(texts), width), self.tokenizer.pad_token_id)
        for i, one in enumerate(rows):
            for j, row in enumerate(one):
                ids[i, j, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([[len(row) for row in one] for one in rows])
        asked = torch.tensor([[i < len(few) for few in texts] for i in range(rounds)])
        return ids, lengths, asked
