"""Vision and language towers written out from their papers, on the published state dicts, in float64.

The independent references of the tests: no transformers, no timm, one image or one text at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def below(state: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights under `prefix`, in float64, by the rest of their names."""
    return {key.removeprefix(prefix): value.double() for key, value in state.items() if key.startswith(prefix)}


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    bias = w.get(f"{name}.bias")
    return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """(T, heads, d) each -> (T, heads * d), head by head."""
    heads = []
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head].T / q.shape[2] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ v[:, head])
    return torch.cat(heads, dim=-1)


def patches(image: Tensor, kernel: Tensor) -> Tensor:
    """(3, S, S) -> (P, width): the image cut into squares, row by row, each times the kernel."""
    size = kernel.shape[-1]
    squares = [
        image[:, top : top + size, left : left + size].flatten()
        for top in range(0, image.shape[1], size)
        for left in range(0, image.shape[2], size)
    ]
    return torch.stack(squares) @ kernel.flatten(1).T


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def clip_tower(x: Tensor, w: Weights, heads: int, causal: bool, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The residual blocks of CLIP (2103.00020), pre-norm; w by the names under ``transformer.resblocks.``."""
    layer = 0
    while f"{layer}.ln_1.weight" in w:
        block = below(w, f"{layer}.")
        joint = norm(x, block, "ln_1", 1e-5) @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in joint.split(x.shape[-1], dim=-1))
        x = x + linear(attention(q, k, v, causal), block, "attn.out_proj")
        x = x + linear(activation(linear(norm(x, block, "ln_2", 1e-5), block, "mlp.c_fc")), block, "mlp.c_proj")
        layer += 1
    return x


def clip_image(state: Weights, image: Tensor, heads: int, activation: Callable[[Tensor], Tensor] = F.gelu) -> Tensor:
    """Embedding (D,) of one normalised image (3, S, S)."""
    w = below(state, "visual.")
    x = torch.cat([w["class_embedding"][None], patches(image.double(), w["conv1.weight"])]) + w["positional_embedding"]
    x = clip_tower(norm(x, w, "ln_pre", 1e-5), below(w, "transformer.resblocks."), heads, False, activation)
    return norm(x[0], w, "ln_post", 1e-5) @ w["proj"]


def clip_text(state: Weights, ids: list[int], heads: int) -> Tensor:
    """Embedding (D,) of one text, read at its largest id, the end of text."""
    w = below(state, "")
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
    x = clip_tower(x, below(w, "transformer.resblocks."), heads, True, F.gelu)
    return norm(x, w, "ln_final", 1e-5)[ids.index(max(ids))] @ w["text_projection"]


def siglip(state: Weights, image: Tensor, heads: int, layers: int) -> Tensor:
    """Patch features (P, width) of one normalised image after `layers` layers of SigLIP (2303.15343)."""
    w = below(state, "")
    kernel = w["embeddings.patch_embedding.weight"]
    x = patches(image.double(), kernel) + w["embeddings.patch_embedding.bias"]
    x = x + w["embeddings.position_embedding.weight"]
    for layer in range(layers):
        block = below(w, f"encoder.layers.{layer}.")
        seen = norm(x, block, "layer_norm1", 1e-6)
        q, k, v = (linear(seen, block, f"self_attn.{name}_proj").unflatten(-1, (heads, -1)) for name in "qkv")
        x = x + linear(attention(q, k, v, causal=False), block, "self_attn.out_proj")
        hidden = F.gelu(linear(norm(x, block, "layer_norm2", 1e-6), block, "mlp.fc1"), approximate="tanh")
        x = x + linear(hidden, block, "mlp.fc2")
    return x


def qwen2(state: Weights, x: Tensor, heads: int, layers: int, rope_theta: float, eps: float) -> Tensor:
    """Hidden states (T, width) of Qwen2 (2407.10671) on input embeddings x (T, width), after the final norm."""
    w = below(state, "")

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    for layer in range(layers):
        block = below(w, f"layers.{layer}.")
        seen = rms(x, block["input_layernorm.weight"])
        size = x.shape[-1] // heads
        q, k, v = (linear(seen, block, f"self_attn.{name}_proj").unflatten(-1, (-1, size)) for name in "qkv")
        k, v = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (k, v))
        mixed = attention(rotated(q, rope_theta), rotated(k, rope_theta), v, causal=True)
        x = x + linear(mixed, block, "self_attn.o_proj")
        seen = rms(x, block["post_attention_layernorm.weight"])
        x = x + linear(
            F.silu(linear(seen, block, "mlp.gate_proj")) * linear(seen, block, "mlp.up_proj"), block, "mlp.down_proj"
        )
    return rms(x, w["norm.weight"])


def rotated(x: Tensor, theta: float) -> Tensor:
    """(T, heads, d) with rotary positions (2104.09864): component j turns with component j + d/2."""
    half = x.shape[-1] // 2
    speed = theta ** (-torch.arange(half).double() / half)
    angle = (torch.arange(len(x)).double()[:, None] * speed)[:, None]
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)
