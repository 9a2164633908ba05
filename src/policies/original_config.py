"""The original layout's config.json: presets and sizes, read into transformers' `JanusConfig` and written back.

A released config names the sizes of the vision tower and of the image tokenizer by preset only. Models of other
sizes are written with the presets' names replaced by `OTHER_TOWER` and `OTHER_VQ` and every size spelled out, so
that the released code refuses them rather than build the preset.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.policies.weight_files import CheckpointError

if TYPE_CHECKING:
    from transformers import JanusConfig

MODEL_TYPE = "multi_modality"
PARTS = ("vision", "aligner", "gen_vision", "gen_aligner", "gen_head")
# ``janus/models/siglip_vit.py`` and ``vq_model.py`` of the released code.
TOWERS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4}
}
VQS: dict[str, dict[str, Any]] = {
    "VQ-16": {
        "image_token_size": 16384, "n_embed": 8, "z_channels": 256, "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2,
    }
}  # fmt: skip
OTHER_TOWER, OTHER_VQ = "siglip_other", "VQ-other"
DEPTH = 2  # of both aligners; `src.policies.original_layout.RULES` names their layers
LANGUAGE_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias",
)  # fmt: skip
# What must survive writing and reading for the written model to be the same one.
TELLING = {
    "text_config": (*LANGUAGE_KEYS, "head_dim"),
    "vision_config": (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size", "patch_size",
        "hidden_act", "layer_norm_eps", "mlp_ratio", "attention_bias", "projection_dim", "use_qk_norm", "depth",
    ),
    "vq_config": (
        "embed_dim", "num_embeddings", "double_latent", "latent_channels", "in_channels", "base_channels",
        "num_res_blocks", "out_channels", "projection_dim", "num_hidden_layers", "hidden_act", "image_token_embed_dim",
    ),
}  # fmt: skip


class _Reader:
    """A config.json's content; every complaint names the file and the key."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file, self.content = file, content

    def refuse(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {key}: {problem}")

    def part(self, key: str) -> dict[str, Any]:
        value = self.content.get(key)
        if not isinstance(value, dict):
            raise self.refuse(
                key, "missing; this is not a Janus with image generation (DeepSeek-VL and JanusFlow have the same type)"
            )
        return value

    def params(self, part: str) -> dict[str, Any]:
        value = self.part(f"{part}_config").get("params")
        if not isinstance(value, dict):
            raise self.refuse(f"{part}_config.params", "missing")
        return value

    def size(self, part: str, key: str, expected: int | None = None) -> int:
        """A positive integer, and the expected one where there is one."""
        value = self.params(part).get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refuse(f"{part}_config.params.{key}", f"expected a positive integer, found {value!r}")
        if expected is not None and value != expected:
            raise self.refuse(f"{part}_config.params.{key}", f"is {value}, but the rest of the model needs {expected}")
        return value


def read_config(file: Path, content: dict[str, Any], ids: dict[str, int]) -> JanusConfig:
    """transformers' config of a model of the original layout.

    Args:
        file: the config.json, for messages.
        content: what stands in it.
        ids: token ids by name: bos, eos, pad, image (the placeholder of an image that is looked at).

    Raises:
        CheckpointError: naming key and value of what is missing or contradicts the rest.
    """
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig

    reader = _Reader(file, content)
    text = _text_config(reader, ids)
    hidden = text.hidden_size
    tower, vq = _tower(reader), _vq(reader)
    image_size, patch = reader.size("vision", "image_size"), tower["patch_size"]
    for part, width in (("aligner", tower["width"]), ("gen_aligner", vq["n_embed"])):
        _check_aligner(reader, part, width, hidden)
    reader.size("gen_head", "n_embed", hidden)
    reader.size("gen_head", "image_token_embed", hidden)
    codes = reader.size("gen_head", "image_token_size")
    if codes != vq["image_token_size"]:
        raise reader.refuse(
            "gen_head_config.params.image_token_size",
            f"the head has {codes} image tokens, the codebook {vq['image_token_size']}",
        )
    if image_size % patch:
        raise reader.refuse(
            "vision_config.params.image_size", f"{image_size} is not a multiple of the patch size {patch}"
        )
    side = image_size // patch
    return JanusConfig(
        text_config=text,
        vision_config=JanusVisionConfig(
            hidden_size=tower["width"],
            num_hidden_layers=tower["layers"],
            num_attention_heads=tower["heads"],
            patch_size=patch,
            mlp_ratio=tower["mlp_ratio"],
            image_size=image_size,
            num_image_tokens=side * side,
            projection_dim=hidden,
            depth=DEPTH,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=vq["n_embed"],
            num_embeddings=codes,
            latent_channels=vq["z_channels"],
            base_channels=vq["ch"],
            channel_multiplier=list(vq["ch_mult"]),
            num_res_blocks=vq["num_res_blocks"],
            num_patches=side,
            projection_dim=hidden,
            num_hidden_layers=DEPTH,
            image_token_embed_dim=hidden,
        ),
        image_token_id=ids["image"],
        tie_word_embeddings=False,
    )


def _text_config(reader: _Reader, ids: dict[str, int]) -> Any:
    from transformers import LlamaConfig

    language = reader.part("language_config")
    kind = language.get("model_type", "llama")
    if kind != "llama":
        raise reader.refuse("language_config.model_type", f"expected 'llama', found {kind!r}")
    # Sizes that are left out are Llama's own defaults, in the released code as here (Janus-Pro-7B relies on it).
    wanted = {k: v for k, v in language.items() if not k.startswith("_") and k not in ("model_type", "architectures")}
    tokens = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    try:
        return LlamaConfig(**{**wanted, **tokens, "tie_word_embeddings": False})
    except Exception as error:  # transformers' own validation has its own error types
        raise reader.refuse("language_config", " ".join(str(error).split())) from error


def _tower(reader: _Reader) -> dict[str, Any]:
    params = reader.params("vision")
    name = params.get("model_name")
    sizes = dict(TOWERS.get(str(name), {}))
    if name == OTHER_TOWER:
        sizes = {key: params.get(key) for key in TOWERS["siglip_large_patch16_384"]}
        _complete(reader, "vision", sizes)
    elif not sizes:
        raise reader.refuse("vision_config.params.model_name", f"{name!r} is unknown; known: {', '.join(TOWERS)}")
    # As the released code counts: -1 is the last layer, -2 (its default) the one before, 5 the fifth.
    chosen, layers = params.get("select_layer", -2), sizes["layers"]
    if not isinstance(chosen, int):
        raise reader.refuse("vision_config.params.select_layer", f"expected an integer, found {chosen!r}")
    sizes["layers"] = min(layers, layers + chosen + 1 if chosen <= 0 else chosen)
    return sizes


def _vq(reader: _Reader) -> dict[str, Any]:
    name, params = reader.part("gen_vision_config").get("cls"), reader.params("gen_vision")
    if name == OTHER_VQ:
        sizes = {key: params.get(key) for key in VQS["VQ-16"]}
        _complete(reader, "gen_vision", sizes)
        return sizes
    if name not in VQS:
        raise reader.refuse("gen_vision_config.cls", f"{name!r} is unknown; known: {', '.join(VQS)}")
    for key in ("image_token_size", "n_embed"):
        # The released code builds the preset's codebook whatever these say; its embeddings and head follow them.
        value = reader.size("gen_vision", key)
        if value != VQS[name][key]:
            raise reader.refuse(
                f"gen_vision_config.params.{key}", f"is {value}, {name}'s codebook has {VQS[name][key]}"
            )
    return dict(VQS[name])


def _complete(reader: _Reader, part: str, sizes: dict[str, Any]) -> None:
    for key, value in sizes.items():
        if value is None:
            raise reader.refuse(f"{part}_config.params.{key}", "missing")


def _check_aligner(reader: _Reader, part: str, width: int, hidden: int) -> None:
    kind = reader.params(part).get("projector_type")
    if kind != "mlp_gelu":
        raise reader.refuse(f"{part}_config.params.projector_type", f"expected 'mlp_gelu', found {kind!r}")
    reader.size(part, "depth", DEPTH)
    reader.size(part, "input_dim", width)
    reader.size(part, "n_embed", hidden)


def write_config(config: JanusConfig, dtype: str) -> dict[str, Any]:
    """The config.json of the original layout for a transformers Janus; dtype as in ``bfloat16``.

    Raises:
        CheckpointError: if the original architecture has no such model; the message names the setting.
    """
    vision, vq, text = config.vision_config, config.vq_config, config.text_config
    tower = {
        "width": vision.hidden_size, "layers": vision.num_hidden_layers, "heads": vision.num_attention_heads,
        "patch_size": vision.patch_size, "mlp_ratio": vision.mlp_ratio,
    }  # fmt: skip
    sizes = {
        "image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim, "z_channels": vq.latent_channels,
        "ch": vq.base_channels, "ch_mult": list(vq.channel_multiplier), "num_res_blocks": vq.num_res_blocks,
    }  # fmt: skip
    tower_name = next((name for name, preset in TOWERS.items() if preset == tower), OTHER_TOWER)
    vq_name = next((name for name, preset in VQS.items() if preset == sizes), OTHER_VQ)
    hidden, codes = text.hidden_size, vq.num_embeddings
    aligner = {"depth": DEPTH, "n_embed": hidden, "projector_type": "mlp_gelu"}
    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "vision": (
            "CLIPVisionTower",
            {
                "image_size": vision.image_size, "model_name": tower_name, "select_feature": "same",
                "select_layer": -1, **(tower if tower_name == OTHER_TOWER else {}),
            },
        ),
        "aligner": ("MlpProjector", {**aligner, "input_dim": vision.hidden_size}),
        "gen_vision": (
            vq_name, sizes if vq_name == OTHER_VQ else {"image_token_size": codes, "n_embed": vq.embed_dim},
        ),
        "gen_aligner": ("MlpProjector", {**aligner, "input_dim": vq.embed_dim}),
        "gen_head": ("vision_head", {"image_token_embed": hidden, "image_token_size": codes, "n_embed": hidden}),
    }  # fmt: skip
    language = {key: getattr(text, key) for key in LANGUAGE_KEYS}
    content = {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        **{f"{part}_config": {"cls": cls, "model_type": part, "params": p} for part, (cls, p) in parts.items()},
        "language_config": {"model_type": "llama", "torch_dtype": dtype, **language, **_rope(text)},
    }
    ids = {"bos": text.bos_token_id, "eos": text.eos_token_id, "pad": text.pad_token_id, "image": config.image_token_id}
    again = read_config(Path("config.json"), content, ids)
    for part, keys in TELLING.items():
        for key in keys:
            value, written = getattr(getattr(config, part), key), getattr(getattr(again, part), key)
            if value != written:
                raise CheckpointError(
                    f"layout=original: {part}.{key} is {value}, but the original architecture only allows {written};"
                    " use layout=transformers"
                )
    return content


def _rope(text: Any) -> dict[str, Any]:
    """The rotary settings under the keys that transformers 4 reads, as the released code uses it."""
    rope = dict(text.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type", "default")
    return {"rope_theta": theta, **({} if kind == "default" else {"rope_scaling": {"rope_type": kind, **rope}})}


def has_presets(content: dict[str, Any]) -> bool:
    """Whether the released code has a preset for every size of a config.json of the original layout."""
    return content["vision_config"]["params"]["model_name"] in TOWERS and content["gen_vision_config"]["cls"] in VQS
