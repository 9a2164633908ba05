"""A Llama trunk without a graph: contexts' shared beginnings are read once, then token by token over a static cache.

transformers' `LlamaModel` stays the trained module and the oracle of the tests. This file reads its weights (see
`src.policies.engine.fused` for the forms) to decode with far fewer operations a token. `step` reads everything that
changes from token to token out of tensors at fixed addresses, so that it can be captured and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from src.policies.engine.cache import CacheMemory, CacheShape, DecodeState
from src.policies.engine.fused import Form, Projection
from src.policies.engine.prefix import Sharing, share
from src.policies.engine.token_operations import TokenOperations, TorchTokenOperations, norm, rotate

# (layer, queries, keys, values), each (N, heads, T, D) and rotated -> (N, heads, T, D)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(slots=True)
class _Layer:
    """One decoder layer's norms and products."""

    norm_attention: Tensor
    qkv: Projection
    out: Projection
    norm_mlp: Tensor
    gate_up: Projection
    down: Projection
    activation: Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Prefix:
    """N contexts as read: keys, values (L, U, H, C, D) and mask (U, C) of the U distinct ones, hidden (U, H) of their
    last tokens, and inverse (N,), which of them each row is.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    hidden: Tensor
    inverse: Tensor


class LlamaTrunk:
    """The decoding form of a `LlamaModel`: merged at one moment, or the trained tensors themselves.

    Args:
        model: the trained `LlamaModel`, possibly with LoRA layers.
        adapter: include the adapter (policy) or leave it out (reference).
        form: how the linears are held.
        operations: of a step; plain torch if None.
        shared_prefix: read what contexts have in common once.
        sliced: a step's attention in plain torch is given the filled places only, so that its shapes change from
            token to token; else all of the cache, under a mask.

    Raises:
        ValueError: for rotary embeddings that depend on the length of the sequence.
    """

    def __init__(
        self,
        model: Any,
        adapter: bool = True,
        form: Form = "merged",
        operations: TokenOperations | None = None,
        shared_prefix: bool = True,
        sliced: bool = True,
    ) -> None:
        config = model.config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.epsilon: float = config.rms_norm_eps
        self.embedding: Tensor = model.embed_tokens.weight.detach()
        self.final_norm: Tensor = model.norm.weight.detach()
        self._operations = operations or TorchTokenOperations()
        self._shared_prefix = shared_prefix
        self._sliced = sliced
        self._rotary = model.rotary_emb
        if (kind := self._rotary.rope_type) in ("dynamic", "longrope"):
            raise ValueError(f"rope_type {kind!r}: the angles of a token change with the sequence's length")
        # (cos, sin) by position. Replaced by longer ones, never freed: captures read the old ones.
        self._tables = [(self.embedding[:0], self.embedding[:0])]
        with torch.no_grad():
            self.layers = [self._layer(layer, adapter, form) for layer in model.layers]

    def _layer(self, layer: Any, adapter: bool, form: Form) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp

        def projection(*modules: Any) -> Projection:
            return Projection(modules, adapter, form)

        return _Layer(
            norm_attention=layer.input_layernorm.weight.detach(),
            qkv=projection(attention.q_proj, attention.k_proj, attention.v_proj),
            out=projection(attention.o_proj),
            norm_mlp=layer.post_attention_layernorm.weight.detach(),
            gate_up=projection(mlp.gate_proj, mlp.up_proj),
            down=projection(mlp.down_proj),
            activation=mlp.act_fn,
        )

    @property
    def cache_shape(self) -> CacheShape:
        """The size of a row and position of this trunk's cache."""
        like = self.embedding
        return CacheShape(len(self.layers), self.kv_heads, self.head_dim, like.dtype, like.device)

    def _angles(self, positions: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """cos and sin (..., D) at positions below `places`, out of a table."""
        if len(self._tables[-1][0]) < places:
            longer = 1024 * -(-places // 1024)
            every: Tensor = torch.arange(longer, device=self.embedding.device)
            cos, sin = self._rotary(self.embedding, every[None])
            self._tables.append((cos[0], sin[0]))
        cos, sin = self._tables[-1]
        return embedding(positions, cos), embedding(positions, sin)

    def _run(self, x: Tensor, positions: Tensor, places: int, attend: Attend) -> Tensor:
        """Push x (N, T, H) at positions (N, T) below `places` through the layers; normed hidden states (N, T, H)."""
        cos, sin = (table[:, None] for table in self._angles(positions, places))
        rows, length, _ = x.shape
        sizes = (self.heads + self.kv_heads, self.kv_heads)
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(norm(x, layer.norm_attention, self.epsilon))
            heads = qkv.view(rows, length, -1, self.head_dim).transpose(1, 2)
            turning, values = heads.split(sizes, dim=1)
            queries, keys = rotate(turning, cos, sin).split((self.heads, self.kv_heads), dim=1)
            mixed = attend(index, queries, keys, values)
            x = x + layer.out(mixed.transpose(1, 2).reshape(rows, length, -1))
            gate, up = layer.gate_up(norm(x, layer.norm_mlp, self.epsilon)).chunk(2, dim=-1)
            x = x + layer.down(layer.activation(gate) * up)
        return norm(x, self.final_norm, self.epsilon)

    def _mix(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        grouped = self.kv_heads != self.heads
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)

    @torch.no_grad()
    def read(self, ids: Tensor, mask: Tensor) -> Prefix:
        """Read left-padded contexts (N, C), what they have in common once."""
        sharing = share(ids, mask, self._shared_prefix)
        width, hosts = ids.shape[1], sharing.hosts
        form = (len(self.layers), len(sharing.ids), self.kv_heads, width, self.head_dim)
        prefix = Prefix(
            keys=self.embedding.new_empty(form),
            values=self.embedding.new_empty(form),
            mask=sharing.mask,
            hidden=self.embedding.new_empty(len(sharing.ids), self.embedding.shape[1]),
            inverse=sharing.inverse,
        )
        host_mask = sharing.mask[:hosts]
        attention = prefix_attention(host_mask)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            prefix.keys[layer, :hosts], prefix.values[layer, :hosts] = keys, values
            return self._mix(queries, keys, values, attention)

        positions = (host_mask.cumsum(1) - 1).clamp_min(0)
        embedded = embedding(sharing.ids[:hosts], self.embedding)
        prefix.hidden[:hosts] = self._run(embedded, positions, width, attend)[:, -1]
        if hosts < len(sharing.ids):
            self._read_guests(prefix, sharing)
        return prefix

    def _read_guests(self, prefix: Prefix, sharing: Sharing) -> None:
        """Guests take the beginning from their hosts, each at its own columns, and read their last token."""
        hosts, width = sharing.hosts, sharing.ids.shape[1]
        lengths = sharing.mask.sum(1)
        column: Tensor = torch.arange(width, device=lengths.device)
        # The k-th token of a row stands at column width - length + k.
        moved = (column + (lengths[hosts:] - lengths[sharing.host_of])[:, None]).clamp_min(0)
        index = moved[:, None, :, None].expand(-1, self.kv_heads, -1, self.head_dim)
        seen = sharing.mask[hosts:, None, None]
        for store in (prefix.keys, prefix.values):
            for layer in store:
                layer[hosts:] = layer[sharing.host_of].gather(2, index)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            own_keys, own_values = prefix.keys[layer, hosts:], prefix.values[layer, hosts:]
            own_keys[:, :, -1:], own_values[:, :, -1:] = keys, values
            return self._mix(queries, own_keys, own_values, seen)

        last = embedding(sharing.ids[hosts:, -1:], self.embedding)
        prefix.hidden[hosts:] = self._run(last, lengths[hosts:, None] - 1, width, attend)[:, 0]

    @torch.no_grad()
    def evaluate(self, prefix: Prefix, embeddings: Tensor) -> Tensor:
        """Hidden states (N, T, H) of tokens (N, T, H) that continue each row; nothing of them is kept."""
        length, width = embeddings.shape[1], prefix.mask.shape[1]
        mask = prefix.mask[prefix.inverse]
        steps: Tensor = torch.arange(length, device=embeddings.device)
        causal = (steps <= steps[:, None]).expand(len(mask), 1, length, length)
        attention = torch.cat([mask[:, None, None].expand(-1, 1, length, width), causal], dim=-1)

        form = (len(mask), self.kv_heads, width + length, self.head_dim)
        all_keys, all_values = embeddings.new_empty(form), embeddings.new_empty(form)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            all_keys[:, :, :width] = prefix.keys[layer].index_select(0, prefix.inverse)
            all_values[:, :, :width] = prefix.values[layer].index_select(0, prefix.inverse)
            all_keys[:, :, width:], all_values[:, :, width:] = keys, values
            return self._mix(queries, all_keys, all_values, attention)

        return self._run(embeddings, mask.sum(1)[:, None] + steps, width + length, attend)

    @torch.no_grad()
    def start(self, memory: CacheMemory, level: str, prefix: Prefix, steps: int) -> DecodeState:
        """Put contexts into the cache, with room for `steps` more tokens a row."""
        rows, width = len(prefix.inverse), prefix.mask.shape[1]
        state = memory.open(level, self.cache_shape, rows, width + steps)
        for layer in range(len(self.layers)):
            state.keys[layer, :, :, :width] = prefix.keys[layer].index_select(0, prefix.inverse)
            state.values[layer, :, :, :width] = prefix.values[layer].index_select(0, prefix.inverse)
        if self._sliced:
            state.reach = width
        elif self._operations.reads_whole_cache:
            # A NaN left there by an earlier rollout would reach the sum through a weight of 0.
            state.keys[:, :, :, width:] = 0
            state.values[:, :, :, width:] = 0
        state.first.copy_(width - prefix.mask.sum(1)[prefix.inverse])
        state.length.fill_(width)
        self._angles(state.first, state.keys.shape[3])
        return state

    @torch.no_grad()
    def step(self, x: Tensor, state: DecodeState) -> Tensor:
        """Append one token (N, H) to every row of the cache; returns its normed hidden state (N, H).

        On the device only `state` is read and written; shapes depend on ``state.reach`` alone.
        """
        operations, rows = self._operations, len(x)
        window = operations.window(state)
        cos, sin = self._angles(window.place - window.first, state.keys.shape[3])
        x, normed = operations.add_norm(x, None, self.layers[0].norm_attention, self.epsilon)
        following = [*(layer.norm_attention for layer in self.layers[1:]), self.final_norm]
        for layer, keys, values, next_norm in zip(self.layers, state.keys, state.values, following, strict=True):
            queries = operations.rotate_and_store(layer.qkv(normed), cos, sin, keys, values, window)
            mixed = operations.attend(queries, keys, values, window)
            x, normed = operations.add_norm(x, layer.out(mixed.reshape(rows, -1)), layer.norm_mlp, self.epsilon)
            delta = layer.down(operations.gate(layer.gate_up(normed), layer.activation))
            x, normed = operations.add_norm(x, delta, next_norm, self.epsilon)
        state.length.copy_(window.filled)
        state.reach = window.reach
        return normed


def prefix_attention(mask: Tensor) -> Tensor:
    """(N, 1, C, C) bool: causal over real tokens; a padding token looks at itself, so that no row is empty."""
    width = mask.shape[1]
    causal = torch.ones((width, width), dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=mask.device)
    return ((causal & mask[:, None, :]) | itself)[:, None]
