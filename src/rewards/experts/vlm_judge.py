"""Any image-text model of transformers as a judge: the probability that it answers yes to a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from src.hub import find_directory
from src.rewards.vision.frozen import FrozenModelExpert, batches_of_equal_length
from src.rewards.vision.weights import MODEL_FILES, as_dtype, load_complete
from src.rewards.vision.yes_no import answer_tokens, check_temperature, yes_probability
from src.text.chat_templates import FlatTemplate, TemplateError, flatten
from src.text.user_text import filled
from src.values import PromptRecord

PLACE = "{prompt}"


class VLMJudge(FrozenModelExpert):
    """The probability that a vision-language model answers yes to a question on image and prompt.

    score = P(yes) / (P(yes) + P(no)) of the first answer token, in [0, 1]; higher is better; applies to
    every prompt. This is VQAScore (Lin et al., 2404.01291), with its question, where P(no) is all the rest.
    Model, processor and chat template are the directory's own. Which tokens count: `src.rewards.vision.yes_no`.

    Rows whose questions have the same number of tokens are run together; nothing is padded, so a model's handling of
    padding cannot affect a score.

    Args:
        path: directory of the model in transformers' format; None: `repository`.
        question: the question, with {prompt} in place of the prompt.
        system: a system message before it; None: the chat template's own.
        temperature: divides the logits, > 0; below 1 it makes scores more extreme.
        dtype: of the weights and the computation: float32, bfloat16 or float16.
        batch_size: images the model sees at once.
    """

    name = "vlm_judge"
    score_range = (0.0, 1.0)

    def __init__(
        self,
        path: str | Path | None = None,
        repository: str | None = None,
        question: str = 'Does this figure show "{prompt}"? Please answer yes or no.',
        system: str | None = None,
        temperature: float = 1.0,
        dtype: str = "bfloat16",
        batch_size: int = 8,
        **kwargs: Any,
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if PLACE not in question:
            raise ValueError(f"question={question!r}: expected {PLACE} in it, where the prompt goes")
        check_temperature(temperature)
        computes_in = as_dtype(dtype)
        folder = find_directory("path", path, repository, MODEL_FILES)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(f"path={folder}: its processor has no chat template; take an instruction-tuned model")
        tokens = answer_tokens(processor.tokenizer)
        try:
            asked = flat_question(processor, system)
        except TemplateError as error:
            raise ValueError(f"path={folder}: its processor's chat template {error}") from error
        super().__init__(lambda: load_complete(AutoModelForImageTextToText, folder, computes_in), batch_size, **kwargs)
        self.processor, self.tokens, self.asked = processor, tokens, asked
        self.question, self.system, self.temperature = question, system, temperature
        # Where the model can, it computes the logits of the last position only.
        known = signature(self.model.forward).parameters
        self.options = {name: value for name, value in (("use_cache", False), ("logits_to_keep", 1)) if name in known}

    def batches(self, records: Sequence[PromptRecord]) -> list[list[int]]:
        """Rows whose questions are equally long, in pieces of at most `batch_size`."""
        return batches_of_equal_length(
            [len(self.processor.tokenizer(text).input_ids) for text in self.texts(records)], self.batch_size
        )

    def score_batch(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """P(yes) (N,) float32."""
        # The texts are already rendered: the template given to the processor is plain text.
        inputs = self.processor.apply_chat_template(
            [
                [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
                for image, text in zip(to_pil(pixels), self.texts(records), strict=True)
            ],
            chat_template="{{ messages[0]['content'][1]['text'] }}",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        inputs = inputs.to(self.model.device, self.model.dtype)
        logits = self.model(**inputs, **self.options).logits
        return yes_probability(logits[:, -1], self.tokens, self.temperature)

    def texts(self, records: Sequence[PromptRecord]) -> list[str]:
        """The text before each answer, including the image's place; a prompt in it is read as words."""

        def fill(prompt: str) -> str:
            return self.asked.fill({"question": self.question.replace(PLACE, prompt)})

        marks = [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        more = [mark for mark in marks if isinstance(mark, str)]
        return filled(self.processor.tokenizer, fill, [(record.prompt,) for record in records], more)


def flat_question(processor: Any, system: str | None) -> FlatTemplate:
    """The processor's chat template around an image and a "question", rendered once, within limits.

    Raises:
        TemplateError: for a template that cannot be used.
    """
    special = {name: token for name, token in processor.tokenizer.special_tokens_map.items() if isinstance(token, str)}

    def variables(words: Mapping[str, str]) -> dict[str, Any]:
        content = [{"type": "image"}, {"type": "text", "text": words["question"]}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        return {**special, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}

    return flatten(processor.chat_template, ("question",), variables)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Pixels (N, 3, H, W) in [0, 1] as 8-bit images, what every processor takes."""
    bytes_ = (pixels.clamp(0.0, 1.0) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in bytes_]
