"""CLIPScore, through torchmetrics, as a reward expert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# torchmetrics' public CLIPScore and clip_score only give the mean of a batch; this is what both are made of.
from torchmetrics.functional.multimodal.clip_score import _clip_score_update

from src.hub import find_directory
from src.rewards.vision.frozen import FrozenModelExpert
from src.rewards.vision.weights import MODEL_FILES, as_dtype, load_complete
from src.text.user_text import as_words
from src.values import PromptRecord


class ClipScore(FrozenModelExpert):
    """How well image and prompt go together for a plain CLIP: CLIPScore (Hessel et al., 2104.08718).

    score = max(100 * cosine of the embeddings, 0), in [0, 100], torchmetrics' scale, clipped for each
    image; higher is better; applies to every prompt. Prompts are cut to the model's 77 tokens.

    Args:
        path: directory of a CLIP in transformers' format; None: `repository`.
        dtype: of the weights and the computation: float32, bfloat16 or float16.
        batch_size: images the model sees at once.
    """

    name = "clip_score"
    score_range = (0.0, 100.0)

    def __init__(
        self,
        path: str | Path | None = None,
        repository: str | None = "openai/clip-vit-large-patch14",
        dtype: str = "float32",
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        from transformers import CLIPModel, CLIPProcessor

        computes_in = as_dtype(dtype)
        folder = find_directory("path", path, repository, MODEL_FILES)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        super().__init__(lambda: Towers(load_complete(CLIPModel, folder, computes_in)), batch_size, **kwargs)
        self.processor = Processor(processor, self.model.config.text_config.max_position_embeddings)

    def score_batch(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """Scores (N,) float32."""
        images = (pixels * 255).round().to(torch.uint8)
        prompts = as_words(self.processor.processor.tokenizer, [record.prompt for record in records])
        scores, _ = _clip_score_update(list(images), prompts, self.model, self.processor)
        return scores.float().clamp_min(0.0)

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """The image tower's embeddings (N, D) float32 of pixels (N, 3, H, W) float32 in [0, 1], as they are scored."""
        images = (pixels.to(self.device) * 255).round().to(torch.uint8)
        parts = []
        for chunk in images.split(self.batch_size):
            read = self.processor(images=[image.cpu() for image in chunk], return_tensors="pt", padding=True)
            parts.append(self.model.get_image_features(read["pixel_values"].to(self.device)))
        return torch.cat(parts)


class Towers(nn.Module):
    """A CLIPModel as torchmetrics calls it: features as tensors, where transformers 5 gives whole outputs."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip, self.config = clip, clip.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(N, D) float32 of preprocessed images."""
        features: Tensor = self.clip.get_image_features(pixel_values.to(self.clip.dtype)).pooler_output
        return features.float()

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, D) float32 of token ids (N, T) and their mask."""
        features: Tensor = self.clip.get_text_features(input_ids, attention_mask).pooler_output
        return features.float()


class Processor:
    """A CLIPProcessor that cuts prompts itself.

    torchmetrics would cut the end-of-text token off with the rest, and the text's embedding is read there.
    """

    def __init__(self, processor: Any, tokens: int) -> None:
        self.processor, self.tokens = processor, tokens

    def __call__(self, **inputs: Any) -> Any:
        cut = {"truncation": True, "max_length": self.tokens} if "text" in inputs else {}
        return self.processor(**inputs, **cut)
