"""The LAION aesthetic predictor as a reward expert."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from src.hub import find_file
from src.rewards.vision.frozen import FrozenModelExpert
from src.rewards.vision.preprocess import CLIP_MEAN, CLIP_STD, fill_and_crop, normalise
from src.rewards.vision.weights import WeightsMismatch, as_dtype, check_fit, read_checkpoint
from src.values import PromptRecord

# The linear layers' places in the released nn.Sequential; between them are dropouts, which do nothing here.
LAYERS = (0, 2, 4, 6, 7)


class Aesthetic(FrozenModelExpert):
    """How beautiful people find the image, whatever the prompt: LAION's aesthetic predictor V2 (2210.08402).

    score = w . e + b, e the unit CLIP ViT-L/14 embedding of the image; trained on ratings from 1 to 10, of
    which LAION's aesthetic subsets keep 4.5 to 6.5 and more; higher is better; applies to every prompt. The
    released predictor is five linear layers without activations between them, so they are one vector w and
    one number b here, and a score cannot leave b +- |w|: that is this expert's `score_range`.

    Args:
        path: the released file sac+logos+ava1-l14-linearMSE.pth; None: `filename` of `repository`.
        tower_path: the CLIP tower's weights, as timm or OpenAI name them; None: `tower_filename` of
            `tower_repository`.
        tower: timm's name of the tower. OpenAI's weights need the variant with their own activation (quickgelu).
        dtype: of the tower's weights and computation: float32, bfloat16 or float16.
        batch_size: images the model sees at once.
    """

    name = "aesthetic"
    score_range = (float("-inf"), float("inf"))

    def __init__(
        self,
        path: str | Path | None = None,
        repository: str | None = None,
        filename: str = "sac+logos+ava1-l14-linearMSE.pth",
        tower_path: str | Path | None = None,
        tower_repository: str | None = "timm/vit_large_patch14_clip_224.openai",
        tower_filename: str = "model.safetensors",
        tower: str = "vit_large_patch14_clip_quickgelu_224",
        dtype: str = "float32",
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        computes_in = as_dtype(dtype)
        file = find_file("path", path, repository, filename)
        weights = find_file("tower_path", tower_path, tower_repository, tower_filename)
        weight, bias = collapse(read_checkpoint(file), file)
        super().__init__(lambda: load_tower(tower, weights, len(weight), computes_in), batch_size, **kwargs)
        reach = float(weight.norm())
        self.weight, self.bias = weight.float(), float(bias)
        self.score_range = (self.bias - reach, self.bias + reach)

    def score_batch(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """Ratings (N,) float32; the prompts are not looked at."""
        parameter = next(self.model.parameters())
        side = self.model.patch_embed.img_size[0]
        ready = normalise(fill_and_crop(pixels, side), CLIP_MEAN, CLIP_STD).to(parameter.dtype)
        embedded = F.normalize(self.model(ready).float(), dim=1)
        return embedded @ self.weight.to(embedded.device) + self.bias


def load_tower(name: str, weights: Path, width: int, dtype: torch.dtype) -> Any:
    """timm's CLIP image tower `name` with a head of `width` outputs, its weights read from `weights`.

    Raises:
        WeightsMismatch: if they do not fit, naming the file.
    """
    import timm

    if not re.fullmatch(r"\w+(\.\w+)?", name):  # timm also takes hf-hub:OWNER/NAME and local-dir:PATH
        raise ValueError(f"tower={name}: expected the name of one of timm's own models; tower_path has the weights")
    # With a different number of outputs timm would initialise the head at random. The weights are read here: timm
    # 1.0.20 unpickles a file that is not safetensors, whatever is in it.
    overlay = {"state_dict": read_tower(weights), "num_classes": width}
    try:
        tower = timm.create_model(name, pretrained=True, num_classes=width, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        raise WeightsMismatch(f"{weights}: does not fit timm's {name} with {width} outputs ({error})") from error
    return tower.to(dtype)


def read_tower(file: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file or a checkpoint of tensors, by name.

    Raises:
        WeightsMismatch: if the file is damaged or has other content.
    """
    if file.suffix != ".safetensors":
        content = read_checkpoint(file)
        return content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsMismatch(f"{file}: cannot be read as safetensors ({error})") from error


def collapse(layers: Mapping[str, Tensor], source: Path) -> tuple[Tensor, Tensor]:
    """The predictor's linear layers as one: weight (D,) and bias (), float64.

    layers: ``layers.N.weight`` (out, in) and ``layers.N.bias`` (out,) of the released file.

    Raises:
        WeightsMismatch: if the layers differ from the released ones.
    """
    expected = {f"layers.{place}.{kind}" for place in LAYERS for kind in ("weight", "bias")}
    check_fit(source, expected - layers.keys(), layers.keys() - expected)
    chain = [(layers[f"layers.{place}.weight"].double(), layers[f"layers.{place}.bias"].double()) for place in LAYERS]
    weight, bias = chain[0]
    for matrix, offset in chain[1:]:
        weight, bias = matrix @ weight, matrix @ bias + offset
    return weight[0], bias[0]
