"""A Llama trunk for decoding: static KV cache, explicit positions, shared prefixes, no graph.

transformers' `LlamaModel` stays the trained module and the oracle of the tests. This file reads its
weights to decode with far fewer operations a token: the projections of a layer are fused, a LoRA adapter is
merged into the fused float32 copy (the originals are never touched, so nothing has to be restored), rows
that share a context are computed once, and keys and values go into a cache allocated once.
In other dtypes the modules are called as they are, adapter unmerged: merging in bf16 would round small
updates away and a second copy of a 7B model would not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention


@dataclass(slots=True)
class _Layer:
    """The operations of one decoder layer between its norms."""

    norm_attention: Tensor
    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    out: Callable[[Tensor], Tensor]
    norm_mlp: Tensor
    mlp: Callable[[Tensor], Tensor]


@dataclass(slots=True)
class KVCache:
    """Keys and values (L, N, Hkv, S, D) of N rows, of which the first `filled` places hold tokens.

    valid (N, S) bool says which places are real tokens; positions (N,) int64 is the next token's position.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    positions: Tensor
    filled: int


def merged_weight(module: Any, adapter: bool) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer, the active LoRA updates added if `adapter`."""
    base = getattr(module, "base_layer", module)
    weight = base.weight
    if adapter and base is not module and not module.disable_adapters:
        for name in module.active_adapters:
            weight = weight + module.get_delta_weight(name).to(weight.dtype)
    return weight, base.bias


def _fused(modules: list[Any], adapter: bool) -> tuple[Tensor, Tensor | None]:
    parts = [merged_weight(module, adapter) for module in modules]
    biases = [bias for _, bias in parts if bias is not None]
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases) if biases else None


class LlamaTrunk:
    """The decoding form of a `LlamaModel` at one moment.

    Args:
        model: the trained `LlamaModel`, possibly with LoRA layers.
        adapter: include the adapter (policy) or leave it out (reference).
        merge: fuse and merge into a copy; None: where the weights are float32.
    """

    def __init__(self, model: Any, adapter: bool = True, merge: bool | None = None) -> None:
        config = model.config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.epsilon: float = config.rms_norm_eps
        self.embedding: Tensor = model.embed_tokens.weight
        self.final_norm: Tensor = model.norm.weight
        self._rotary = model.rotary_emb
        merge = self.embedding.dtype == torch.float32 if merge is None else merge
        if not merge and not adapter:
            raise ValueError("LlamaTrunk: an unmerged trunk calls the modules; disable the adapter there instead")
        build = self._fused_layer if merge else self._module_layer
        with torch.no_grad():
            self.layers = [build(layer, adapter) for layer in model.layers]

    def _fused_layer(self, layer: Any, adapter: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv, qkv_bias = _fused([attention.q_proj, attention.k_proj, attention.v_proj], adapter)
        gate_up, gate_up_bias = _fused([mlp.gate_proj, mlp.up_proj], adapter)
        out, out_bias = merged_weight(attention.o_proj, adapter)
        down, down_bias = merged_weight(mlp.down_proj, adapter)
        sizes = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        activation = mlp.act_fn

        def run_mlp(x: Tensor) -> Tensor:
            gate, up = linear(x, gate_up, gate_up_bias).chunk(2, dim=-1)
            return linear(activation(gate) * up, down, down_bias)

        return _Layer(
            norm_attention=layer.input_layernorm.weight,
            qkv=lambda x: linear(x, qkv, qkv_bias).split(sizes, dim=-1),  # type: ignore[return-value]
            out=lambda x: linear(x, out, out_bias),
            norm_mlp=layer.post_attention_layernorm.weight,
            mlp=run_mlp,
        )

    def _module_layer(self, layer: Any, adapter: bool) -> _Layer:
        attention = layer.self_attn
        return _Layer(
            norm_attention=layer.input_layernorm.weight,
            qkv=lambda x: (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)),
            out=attention.o_proj,
            norm_mlp=layer.post_attention_layernorm.weight,
            mlp=layer.mlp,
        )

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, self.epsilon)

    def _split_heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, self.head_dim).transpose(1, 2)

    @staticmethod
    def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding in the half-split layout; `sin` carries the sign of its first half."""
        half = x.shape[-1] // 2
        return x * cos + torch.cat((x[..., half:], x[..., :half]), dim=-1) * sin

    def _angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin (N, 1, T, D) at positions (N, T)."""
        cos, sin = self._rotary(x, positions)
        half = sin.shape[-1] // 2
        return cos[:, None], torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[:, None]

    def _run(self, x: Tensor, positions: Tensor, cache: KVCache, attend: Tensor) -> Tensor:
        """Push x (N, T, H) through the layers, appending to the cache.

        attend (N, 1, T, filled + T) bool: which places each query may look at.
        """
        rows, length, _ = x.shape
        start, end = cache.filled, cache.filled + length
        cos, sin = self._angles(x, positions)
        grouped = self.kv_heads != self.heads
        for index, layer in enumerate(self.layers):
            q, k, v = layer.qkv(self._norm(x, layer.norm_attention))
            keys, values = cache.keys[index], cache.values[index]
            keys[:, :, start:end] = self._rotate(self._split_heads(k, self.kv_heads), cos, sin)
            values[:, :, start:end] = self._split_heads(v, self.kv_heads)
            mixed = scaled_dot_product_attention(
                self._rotate(self._split_heads(q, self.heads), cos, sin),
                keys[:, :, :end],
                values[:, :, :end],
                attn_mask=attend,
                enable_gqa=grouped,
            )
            x = x + layer.out(mixed.transpose(1, 2).reshape(rows, length, -1))
            x = x + layer.mlp(self._norm(x, layer.norm_mlp))
        cache.filled = end
        return self._norm(x, self.final_norm)

    def empty_cache(self, rows: int, places: int) -> KVCache:
        """A cache for `rows` rows of up to `places` tokens."""
        shape = (len(self.layers), rows, self.kv_heads, places, self.head_dim)
        like = self.embedding
        return KVCache(
            keys=like.new_empty(shape),
            values=like.new_empty(shape),
            valid=torch.zeros((rows, places), dtype=torch.bool, device=like.device),
            positions=torch.zeros(rows, dtype=torch.int64, device=like.device),
            filled=0,
        )

    @torch.no_grad()
    def prefill(self, ids: Tensor, mask: Tensor, steps: int) -> tuple[KVCache, Tensor]:
        """Read left-padded contexts (N, C); each distinct row is computed once.

        Returns a cache with room for `steps` more tokens and the last token's hidden state (N, H).
        """
        marked = torch.where(mask, ids, torch.full_like(ids, -1))
        unique, inverse = torch.unique(marked, dim=0, return_inverse=True)
        unique_mask = unique >= 0
        width = ids.shape[1]
        small = self.empty_cache(unique.shape[0], width)
        positions = (unique_mask.cumsum(1) - 1).clamp_min(0)
        hidden = self._run(
            embedding(unique.clamp_min(0), self.embedding), positions, small, prefix_attention(unique_mask)
        )
        cache = self.empty_cache(ids.shape[0], width + steps)
        cache.keys[:, :, :, :width] = small.keys.index_select(1, inverse)
        cache.values[:, :, :, :width] = small.values.index_select(1, inverse)
        cache.valid[:, :width] = mask
        cache.valid[:, width:] = True
        cache.positions = mask.sum(1)
        cache.filled = width
        return cache, hidden[:, -1][inverse]

    @torch.no_grad()
    def extend(self, cache: KVCache, embeddings: Tensor) -> Tensor:
        """Append embeddings (N, T, H) to every row; returns hidden states (N, T, H)."""
        length = embeddings.shape[1]
        steps = torch.arange(length, device=embeddings.device)
        attend = cache.valid[:, None, None, : cache.filled + length]
        if length > 1:
            places = torch.arange(cache.filled + length, device=embeddings.device)
            attend = attend & (places <= cache.filled + steps[:, None])
        positions = cache.positions[:, None] + steps
        cache.positions = cache.positions + length
        return self._run(embeddings, positions, cache, attend)


def prefix_attention(mask: Tensor) -> Tensor:
    """(N, 1, C, C) bool: causal over real tokens; a padding token looks at itself, so that no row is empty."""
    width = mask.shape[1]
    causal = torch.ones((width, width), dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=mask.device)
    return ((causal & mask[:, None, :]) | itself)[:, None]
