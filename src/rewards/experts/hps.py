"""Human Preference Score v2.1 as a reward expert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from src.hub import find_directory, find_file
from src.rewards.vision.clip_layout import VIT_H_14, ClipSizes, load_clip
from src.rewards.vision.frozen import FrozenModelExpert
from src.rewards.vision.preprocess import CLIP_MEAN, CLIP_STD, fit_inside, normalise
from src.rewards.vision.weights import as_dtype
from src.text.user_text import as_words
from src.values import PromptRecord

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


class HPS(FrozenModelExpert):
    """How much people would like the image for its prompt: HPS v2.1 (Wu et al., 2306.09341).

    score = cosine of the CLIP embeddings of image and prompt, raw, in [-1, 1]; higher is better; applies to
    every prompt. The published means of text-to-image models lie between 0.13 and 0.34. Comparable among
    images of one prompt only, which is how group normalisation uses it. Preprocessing as released: the
    longer side becomes 224, the rest is black; prompts are cut to 77 tokens.

    Args:
        path: the released checkpoint file; None: `filename` of `repository`.
        tokenizer: directory of the CLIP tokenizer; None: that of `tokenizer_repository`.
        dtype: of the weights and the computation: float32, bfloat16 or float16.
        batch_size: images the model sees at once.
        sizes: of the CLIP the checkpoint was trained from.
    """

    name = "hps"
    score_range = (-1.0, 1.0)

    def __init__(
        self,
        path: str | Path | None = None,
        repository: str | None = "xswu/HPSv2",
        filename: str = "HPS_v2.1_compressed.pt",
        tokenizer: str | Path | None = None,
        tokenizer_repository: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        dtype: str = "float32",
        batch_size: int = 32,
        sizes: ClipSizes = VIT_H_14,
        **kwargs: Any,
    ) -> None:
        from transformers import AutoTokenizer

        computes_in = as_dtype(dtype)
        folder = find_directory("tokenizer", tokenizer, tokenizer_repository, TOKENIZER_FILES)
        file = find_file("path", path, repository, filename)
        reads = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if reads.eos_token_id != sizes.end_of_text:
            raise ValueError(
                f"tokenizer={folder}: its end-of-text token is {reads.eos_token_id}, the checkpoint's is"
                f" {sizes.end_of_text}; take CLIP's tokenizer"
            )
        super().__init__(lambda: load_clip(file, sizes, computes_in), batch_size, **kwargs)
        self.sizes, self.tokenizer = sizes, reads

    def score_batch(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """Cosines (N,) float32."""
        # A group shares its prompt: each distinct one is embedded once.
        distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(r.prompt for r in records))}
        texts = self.embed_texts(list(distinct))[[distinct[record.prompt] for record in records]]
        return (self.embed_images(pixels) * texts).sum(dim=1)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit vectors (N, D) float32 of pixels (N, 3, H, W) in [0, 1]."""
        ready = normalise(fit_inside(pixels, self.sizes.image_size), CLIP_MEAN, CLIP_STD)
        embedded = self.model.get_image_features(ready.to(self.model.dtype)).pooler_output
        return F.normalize(embedded.float(), dim=1)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (P, D) float32; padding comes after the end of text, where nothing attends to it."""
        words = as_words(self.tokenizer, prompts)
        cut = self.tokenizer(words, truncation=True, max_length=self.sizes.context_length).input_ids
        ids = pad_sequence([torch.tensor(row) for row in cut], batch_first=True, padding_value=self.sizes.end_of_text)
        embedded = self.model.get_text_features(ids.to(self.model.device)).pooler_output
        return F.normalize(embedded.float(), dim=1)
