"""GroundingDINO as a reward expert: are the objects there, in the right number and place?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import nan
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from src.rewards.aspects import Aspect, aspect_of, objects_of
from src.rewards.base import RewardError
from src.rewards.vision.detection import (
    NOTHING,
    Caption,
    Detections,
    build_caption,
    corners,
    detections_by_phrase,
    nms,
)
from src.rewards.vision.frozen import FrozenModelExpert
from src.rewards.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD, fit_between, normalise
from src.rewards.vision.pretrained import find_pretrained
from src.rewards.vision.spatial import NEAR_DISTANCE, spatial_score
from src.rewards.vision.weights import as_dtype, load_complete
from src.text.user_text import as_words
from src.values import ObjectCount, PromptRecord

# The score of an object that is there in the wrong number.
WRONG_COUNT = 0.2


def object_score(nouns: Sequence[str], found: Mapping[str, Detections]) -> float:
    """The fraction of nouns with at least one box, in [0, 1]."""
    return sum(len(found.get(noun, NOTHING)) > 0 for noun in nouns) / len(nouns)


def numeracy_score(
    counts: Sequence[ObjectCount], found: Mapping[str, Detections], nms_threshold: float, faithful: bool = False
) -> float:
    """The mean over the counts of 1 for the right number of boxes after NMS, 0.2 for a wrong one, 0 for none.

    faithful: NMS reads centre-size boxes as corners, as released.
    """

    def of_one(count: ObjectCount) -> float:
        detections = found.get(count.name, NOTHING)
        if not len(detections):
            return 0.0
        boxes = detections.boxes if faithful else corners(detections.boxes)
        return 1.0 if len(nms(boxes, detections.scores, nms_threshold)) == count.number else WRONG_COUNT

    return sum(map(of_one, counts)) / len(counts)


class Detector(FrozenModelExpert):
    """Looks for the prompt's objects with GroundingDINO and scores, in [0, 1], higher is better:

    - a relation: 0.2 for each of its two objects that is found and, when both are, half of their position score
      (`spatial.spatial_score`; at most 0.9);
    - counts: mean over the counted objects of 1 (right number after NMS), 0.2 (wrong number), 0 (absent);
    - otherwise: the fraction of nouns found.

    Which of these applies follows from the record (`aspects.aspect_of`). Not applicable where nothing is named
    to look for. An object is found where the mean probability over all tokens of its phrase, in the caption
    "noun1 . noun2 .", is above `box_threshold` for at least one of the network's boxes. Details:
    ``detector_spatial``, ``detector_numeracy``, ``detector_object``, each NaN for images of the other kinds.

    The scores of the released code (T2I-R1, arXiv 2505.00703) with its errors fixed. `faithful` restores all of
    these: "above" and "on top of" never score a position (such prompts end at 0.4); "next to", "near"
    and "on side of" always score it in full; NMS before counting reads centre-size boxes as corners; nouns of
    three and more words are never found; a relation between objects of the same name is 0; without nouns the score is 1
    instead of not applicable; a noun given twice is in the caption twice; only nouns are looked for.

    A network in less than float32 computes its attention relative to the largest logit of the whole batch, so
    that the last bits of a row depend on its neighbours; in float32 they agree to about 1e-6.

    Args:
        path: a GroundingDINO directory in transformers' format; None: `repository` from the hub or its cache.
        repository: where the weights are published; the released code uses the Swin-T ones.
        dtype: of the network: float32, bfloat16 or float16.
        batch_size: images a forward.
        box_threshold: the phrase probability above which a box counts.
        nms_threshold: the IoU above which the less confident of two boxes of an object is dropped.
        near_distance: how far apart, in units of the image, "next to" still scores in full.
        short_side, long_side: pixels images are resized to: the short side, unless the long one gets longer.
        faithful: score as released.
    """

    name = "detector"
    score_range = (0.0, 1.0)
    higher_is_better = True
    full_state_update = False
    needs = "nouns, spatial_info or numeracy_info"

    def __init__(
        self,
        path: str | Path | None = None,
        repository: str | None = "IDEA-Research/grounding-dino-tiny",
        dtype: str = "float32",
        batch_size: int = 4,
        box_threshold: float = 0.3,
        nms_threshold: float = 0.5,
        near_distance: float = NEAR_DISTANCE,
        short_side: int = 800,
        long_side: int = 1333,
        faithful: bool = False,
        **kwargs: Any,
    ) -> None:
        for key, value in (("box_threshold", box_threshold), ("nms_threshold", nms_threshold)):
            if not 0 < value < 1:
                raise ValueError(f"{key}={value}: expected a number between 0 and 1")
        if not near_distance > 0:
            raise ValueError(f"near_distance={near_distance}: expected a number > 0, in units of the image")
        if not 0 < short_side <= long_side:
            raise ValueError(f"short_side={short_side}: expected > 0 and at most long_side={long_side}")
        from transformers import AutoTokenizer, GroundingDinoForObjectDetection

        computes_in = as_dtype(dtype)
        folder = find_pretrained("grounding-dino", path, repository)
        super().__init__(
            lambda: load_complete(GroundingDinoForObjectDetection, folder, computes_in), batch_size, **kwargs
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.box_threshold, self.nms_threshold, self.near_distance = box_threshold, nms_threshold, near_distance
        self.short_side, self.long_side, self.faithful = short_side, long_side, faithful

    def applicable(self, record: PromptRecord) -> bool:
        """Whether there is an object to look for; with `faithful` always."""
        return self.faithful or bool(objects_of(record))

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Scores (N,) float32 of pixels (N, 3, H, W) in [0, 1]; details: the same by what was scored."""
        scores = super().score(pixels, records)
        details = {}
        for aspect in get_args(Aspect):
            scored = [aspect_of(record) == aspect and bool(objects_of(record)) for record in records]
            details[f"{self.name}_{aspect}"] = scores.masked_fill(~torch.tensor(scored, device=scores.device), nan)
        return scores, details

    def score_batch(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """Scores (N,) float32; 1 for a record without anything to look for."""
        scores = torch.ones(len(records))
        captions = []
        for record in records:
            with self._blaming(record):
                captions.append(self.caption(record))
        rows = [row for row, caption in enumerate(captions) if caption.phrases]
        found = self.detect(pixels[rows], [captions[row] for row in rows]) if rows else []
        for row, detections in zip(rows, found, strict=True):
            with self._blaming(records[row]):
                scores[row] = self.score_of(records[row], detections)
        return scores.to(pixels.device)

    @contextmanager
    def _blaming(self, record: PromptRecord) -> Iterator[None]:
        """Report a ValueError as one about this record, not about its batch."""
        try:
            yield
        except ValueError as error:
            raise RewardError(self.name, str(error), record.prompt) from error

    def caption(self, record: PromptRecord) -> Caption:
        """The phrases given to the network, one per object.

        Raises ValueError for a caption that is longer than the network reads.
        """
        phrases = record.nouns if self.faithful else objects_of(record)
        tokenizer = self.tokenizer
        marks = (tokenizer.cls_token_id, tokenizer.convert_tokens_to_ids("."), tokenizer.sep_token_id)

        def tokenize(text: str) -> list[int]:
            ids: list[int] = tokenizer(as_words(tokenizer, [text]), add_special_tokens=False)["input_ids"][0]
            return ids

        caption = build_caption(phrases, tokenize, marks)
        longest = self.model.config.max_text_len
        if len(caption.ids) > longest:
            raise ValueError(
                f"its nouns have {len(caption.ids)} tokens, but the network reads only {longest}; use fewer nouns"
            )
        return caption

    def detect(self, pixels: Tensor, captions: Sequence[Caption]) -> list[dict[str, Detections]]:
        """The boxes of every phrase on each of N images (N, 3, H, W), each with its own caption; on the CPU.

        Raises ValueError if the network returns NaN, which would otherwise count as an absent object.
        """
        logits, boxes = (part.cpu() for part in self.look(pixels, captions))
        if logits.isnan().any() or boxes.isnan().any():
            raise ValueError(f"the network returns NaN in {self.model.dtype}; set dtype=float32, or check its weights")
        return [
            detections_by_phrase(caption, logits[row], boxes[row], self.box_threshold)
            for row, caption in enumerate(captions)
        ]

    def look(self, pixels: Tensor, captions: Sequence[Caption]) -> tuple[Tensor, Tensor]:
        """The network's output for N images (N, 3, H, W) in [0, 1], each with its own caption.

        Returns the logits (N, Q, T) of Q queries against the caption's tokens, -inf past its end, and the
        queries' boxes (N, Q, 4), centre-size; both float32.
        """
        pixels = normalise(fit_between(pixels, self.short_side, self.long_side), IMAGENET_MEAN, IMAGENET_STD)
        width = max(len(caption.ids) for caption in captions)
        ids = torch.full((len(captions), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, caption in enumerate(captions):
            ids[row, : len(caption.ids)] = torch.tensor(caption.ids)
            mask[row, : len(caption.ids)] = 1
        seen = self.model(
            pixel_values=pixels.to(self.model.dtype),
            input_ids=ids.to(pixels.device),
            attention_mask=mask.to(pixels.device),
        )
        return seen.logits[..., :width].float(), seen.pred_boxes.float()

    def score_of(self, record: PromptRecord, found: Mapping[str, Detections]) -> float:
        """The score of one image whose objects were looked for, in [0, 1]."""
        if self.faithful:
            found = {phrase: boxes for phrase, boxes in found.items() if len(phrase.split(" ")) < 3}
        aspect = aspect_of(record)
        if aspect == "spatial" and record.spatial is not None:
            return spatial_score(record.spatial, found, self.near_distance, self.nms_threshold, self.faithful)
        if aspect == "numeracy":
            return numeracy_score(record.counts, found, self.nms_threshold, self.faithful)
        return object_score(record.nouns, found)
