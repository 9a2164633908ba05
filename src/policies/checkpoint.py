"""A Janus checkpoint directory of either layout, opened and checked before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.policies import original_config
from src.policies.contexts import check_templates
from src.policies.original_layout import has_no_counterpart, original_name, to_original, to_transformers
from src.policies.weight_files import CheckpointError, mapped_tensors, read_json, weight_files
from src.text.chat_templates import TemplateError

if TYPE_CHECKING:
    from transformers import JanusConfig, JanusForConditionalGeneration

TRANSFORMERS, ORIGINAL = "transformers", "original"
LAYOUTS = {"janus": TRANSFORMERS, original_config.MODEL_TYPE: ORIGINAL}
# Janus's special tokens, for tokenizers that do not name them by role (the original ones do not).
PAD, IMAGE = "<｜▁pad▁｜>", "<image_placeholder>"
BEGIN_OF_IMAGE, END_OF_IMAGE = "<begin_of_image>", "<end_of_image>"
# All must have one row per code.
CODE_WEIGHTS = {
    "codebook": "model.vqmodel.quantize.embedding.weight",
    "generation embeddings": "model.generation_embeddings.weight",
    "generation head": "model.generation_head.vision_head.weight",
}
SHOWN = 5


@dataclass(frozen=True, slots=True)
class JanusCheckpoint:
    """An opened directory whose config, tokenizer and weights fit each other.

    weights: under transformers' names, mapped from the files, in the files' dtype; unread until used.
    """

    folder: Path
    layout: str
    config: JanusConfig
    tokenizer: Any
    weights: Mapping[str, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the files' weights."""
        return self.weights["lm_head.weight"].dtype

    def model(self, dtype: torch.dtype) -> JanusForConditionalGeneration:
        """The model, on the CPU, in eval mode. Takes one copy of the weights in `dtype`, and no second one."""
        from transformers import GenerationConfig, JanusForConditionalGeneration

        try:
            # Each weight is read from its file once and becomes the parameter itself.
            weights = {name: value.to(dtype, copy=True) for name, value in self.weights.items()}
            janus = JanusForConditionalGeneration.from_pretrained(
                None, config=self.config, state_dict=weights, dtype=dtype
            ).eval()
            # Its origin, as transformers records it; PEFT writes it into adapters.
            janus.name_or_path = janus.config.name_or_path = str(self.folder)
            if self.layout == ORIGINAL:
                janus.generation_config = self._generation_config()
            elif (self.folder / "generation_config.json").is_file():
                janus.generation_config = GenerationConfig.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:
            raise CheckpointError(f"{self.folder}: cannot be loaded: {type(error).__name__}: {error}") from error
        return janus

    def _generation_config(self) -> Any:
        """Needed by transformers' own image generation; the original layout has no file for it."""
        from transformers import GenerationConfig

        text = self.config.text_config
        begin = self.tokenizer.convert_tokens_to_ids(BEGIN_OF_IMAGE)
        ids = {key: getattr(text, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return GenerationConfig(**ids, generation_kwargs={"boi_token_id": begin})


def check_janus_directory(path: str | Path) -> Path:
    """The directory at `path`, checked to be a Janus's of either layout by its config and the names of its files.

    Raises:
        CheckpointError: naming what is missing or wrong.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"model.path={path}: no such directory; give a Janus checkpoint")
    layout_of(folder)
    weight_files(folder)
    return folder


def layout_of(folder: Path) -> str:
    """`TRANSFORMERS` or `ORIGINAL`, by the ``model_type`` of the directory's config.json.

    Raises:
        CheckpointError: for a missing or damaged config, or one of another family.
    """
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in LAYOUTS:
        known = ", ".join(f"{name!r} ({layout} layout)" for name, layout in LAYOUTS.items())
        raise CheckpointError(f"{folder / 'config.json'}: model_type is {kind!r}, expected one of {known}")
    return LAYOUTS[str(kind)]


def open_checkpoint(path: str | Path) -> JanusCheckpoint:
    """Open a directory of either layout and check that its parts fit each other. No weight is read yet.

    No code of the checkpoint is run, whatever its files request.

    Raises:
        CheckpointError: naming file and key of what is missing, damaged or does not fit.
    """
    folder = check_janus_directory(path)
    layout, config, tokenizer = open_without_weights(folder)
    stored = mapped_tensors(folder)
    check_weights(folder, layout, config, stored)
    weights = to_transformers(stored) if layout == ORIGINAL else stored
    return JanusCheckpoint(folder, layout, config, tokenizer, {k: v for k, v in weights.items() if not _is_computed(k)})


def open_without_weights(folder: Path) -> tuple[str, JanusConfig, Any]:
    """A directory's layout, config and tokenizer, which fit each other.

    Raises:
        CheckpointError: naming file and key of what is missing, damaged or does not fit.
    """
    layout, tokenizer = layout_of(folder), read_tokenizer(folder)
    config = _config(folder, layout, tokenizer)
    check_sizes(folder, config)
    check_vocabulary(folder, config, tokenizer)
    return layout, config, tokenizer


def read_tokenizer(folder: Path, **settings: Any) -> Any:
    """The directory's tokenizer, exactly as its tokenizer.json says.

    transformers' choice of a class is not used: the original directories name LlamaTokenizerFast, which splits texts
    differently from the byte-level tokenizer.json next to it.

    Raises:
        CheckpointError: if there is none, it is damaged, it lacks one of Janus's special tokens, or its chat templates
            cannot be used.
    """
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder / 'tokenizer.json'}: not found; the checkpoint cannot be loaded without it")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, **settings)
    except Exception as error:
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded: {type(error).__name__}: {error}") from error
    if tokenizer.pad_token is None and PAD in tokenizer.get_vocab():
        tokenizer.pad_token = PAD
    begin = getattr(tokenizer, "boi_token", BEGIN_OF_IMAGE)
    for role, token in {
        "begin-of-sequence": tokenizer.bos_token,
        "end-of-sequence": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "begin-of-image": begin,
    }.items():
        if token is None or token not in tokenizer.get_vocab():
            named = "" if token is None else f" {token!r}"
            raise CheckpointError(
                f"{folder / 'tokenizer.json'}: no {role} token{named}; the tokenizer belongs to another model"
            )
    try:
        check_templates(tokenizer)
    except TemplateError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return tokenizer


def _config(folder: Path, layout: str, tokenizer: Any) -> JanusConfig:
    from transformers import JanusConfig

    file = folder / "config.json"
    if layout == ORIGINAL:
        image = tokenizer.get_vocab().get(IMAGE)
        if image is None:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'}: no token {IMAGE!r}; the tokenizer belongs to another model"
            )
        ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        return original_config.read_config(file, read_json(file), {**ids, "image": image})
    stored = read_json(file)
    try:
        config = JanusConfig.from_dict(stored)
    except Exception as error:
        raise CheckpointError(f"{file}: not a Janus config: {' '.join(str(error).split())}") from error
    # Without this key it is read as tied (transformers' default), and Janus-Pro's own lm_head would be overwritten.
    config.tie_word_embeddings = False
    # transformers replaces the file's value by a computed one.
    vq = stored.get("vq_config")
    said = vq.get("num_patches") if isinstance(vq, dict) else None
    if said is not None and said != config.vq_config.num_patches:
        raise CheckpointError(
            f"{file}: vq_config.num_patches is {said}, but vision_config has"
            f" image_size / patch_size = {config.vq_config.num_patches}"
        )
    return config


def check_sizes(folder: Path, config: JanusConfig) -> None:
    """Raise CheckpointError where the config's sizes, or the processor's, contradict each other."""
    file, vision, vq = folder / "config.json", config.vision_config, config.vq_config
    side, hidden = vision.image_size // vision.patch_size, config.text_config.hidden_size
    painted = side * 2 ** (len(vq.channel_multiplier) - 1)
    inner = {
        "vision_config.projection_dim": vision.projection_dim,
        "vq_config.projection_dim": vq.projection_dim,
        "vq_config.image_token_embed_dim": vq.image_token_embed_dim,
    }
    problems = [
        f"{key} is {width}, text_config.hidden_size {hidden}" for key, width in inner.items() if width != hidden
    ]
    if vision.image_size % vision.patch_size:
        problems.append(f"image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}")
    if vision.num_image_tokens != side * side:
        problems.append(f"num_image_tokens is {vision.num_image_tokens}, an image has {side} x {side}")
    if painted != vision.image_size:
        problems.append(
            f"image_size is {vision.image_size}, but its {side} x {side} image tokens are painted as"
            f" {painted} x {painted} pixels"
        )
    if problems:
        raise CheckpointError(f"{file}: {'; '.join(problems)}")
    for processor in (folder / "processor_config.json", folder / "preprocessor_config.json"):
        if processor.is_file():
            _check_processor(processor, vision.image_size, side * side)


def _check_processor(file: Path, image_size: int, tokens: int) -> None:
    stored = read_json(file)
    nested = stored.get("image_processor")
    images: dict[str, Any] = nested if isinstance(nested, dict) else stored
    size = images.get("size")
    found = size.get("height") if isinstance(size, dict) else images.get("image_size")
    for key, value, expected in (
        ("image size", found, image_size),
        ("num_image_tokens", stored.get("num_image_tokens"), tokens),
    ):
        if value is not None and value != expected:
            raise CheckpointError(f"{file}: its {key} is {value}, config.json's is {expected}")


def check_vocabulary(folder: Path, config: JanusConfig, tokenizer: Any) -> None:
    """Raise CheckpointError where a special token has no row in the text embeddings."""
    rows = config.text_config.vocab_size
    begin = tokenizer.convert_tokens_to_ids(getattr(tokenizer, "boi_token", BEGIN_OF_IMAGE))
    highest = max(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, begin)
    if highest >= rows:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: has the special token id {highest}, but config.json's vocab_size is {rows};"
            " the tokenizer belongs to another model"
        )


def check_weights(folder: Path, layout: str, config: JanusConfig, stored: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the files have the config's weights: no more, no less, each of its shape.

    Names and shapes are compared and reported in the directory's own layout.
    """
    expected = expected_shapes(config, layout)
    _check_codes(folder, layout, stored)
    missing = sorted(expected.keys() - stored.keys())
    unexpected = sorted(
        name for name in stored.keys() - expected.keys() if not (_is_computed(name) or _falls_away(layout, name))
    )
    wrong = [
        f"{name} {tuple(stored[name].shape)} instead of {shape}"
        for name, shape in sorted(expected.items())
        if name in stored and tuple(stored[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {what}: {_first(names)}"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (wrong, "of another shape"))
        if names
    ]
    if problems:
        raise CheckpointError(f"{folder}: the weights do not match config.json: {'; '.join(problems)}")


def expected_shapes(config: JanusConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights in a layout, without those that have no counterpart in transformers."""
    from transformers import JanusForConditionalGeneration

    with torch.device("meta"):
        weights: Mapping[str, Tensor] = JanusForConditionalGeneration(config).state_dict()
    if layout == ORIGINAL:
        weights = to_original(weights)
    return {name: tuple(value.shape) for name, value in weights.items()}


def _check_codes(folder: Path, layout: str, stored: Mapping[str, Tensor]) -> None:
    rows = {
        part: (key, stored[key].shape[0])
        for part, name in CODE_WEIGHTS.items()
        if (key := original_name(name) if layout == ORIGINAL else name) in stored
    }
    if len({count for _, count in rows.values()}) > 1:
        told = ", ".join(f"{part} {count} ({key})" for part, (key, count) in rows.items())
        raise CheckpointError(f"{folder}: the image codes do not match: {told}")


def _is_computed(name: str) -> bool:
    """Old files of Llama models hold the rotary frequencies; they are computed, never read."""
    return name.endswith(".rotary_emb.inv_freq")


def _falls_away(layout: str, name: str) -> bool:
    return layout == ORIGINAL and has_no_counterpart(name)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names) - SHOWN} more)" if len(names) > SHOWN else "")
