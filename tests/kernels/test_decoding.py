"""The decode step's operations against transformers' own modules and float64, in torch and interpreted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from kernels import DecodeOperations, operations
from tests.kernels.problems import draw

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = operations("torch", "cpu").decoding


def config(**more: Any) -> LlamaConfig:
    """A tiny Llama with two query heads a key-value head and a head_dim that is no power of two."""
    sizes = {"hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 64}
    return LlamaConfig(**{**sizes, **heads, **more})


def attended_in_float64(q: Tensor, keys: Tensor, values: Tensor, first: list[int], length: int) -> Tensor:
    """Attention as it is defined, head by head over the places that count and no others."""
    n, query_heads, head_dim = q.shape
    out = torch.zeros(q.shape, dtype=torch.float64)
    for row in range(n):
        for head in range(query_heads):
            kv = head // (query_heads // keys.shape[1])
            k, v = (x[row, kv, first[row] : length].double() for x in (keys, values))
            if len(k):
                out[row, head] = ((k @ q[row, head].double()) * head_dim**-0.5).softmax(0) @ v
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotation_is_that_of_transformers(dtype: torch.dtype) -> None:
    n, s, place = 3, 9, 5
    rotary = LlamaRotaryEmbedding(config())
    qkv = draw(n, (4 + 2 * 2) * 24, seed=1, dtype=dtype)
    cos, sin = rotary(qkv, torch.tensor([[5], [3], [0]]))  # a position of its own for each row
    q, k, v = (x.view(n, -1, 1, 24) for x in qkv.split((96, 48, 48), dim=1))
    want_q, want_k = apply_rotary_pos_emb(q, k, cos, sin)
    keys, values = torch.zeros(n, 2, s, 24, dtype=dtype), torch.zeros(n, 2, s, 24, dtype=dtype)
    got = OPS.rotate_and_store(qkv, cos[:, 0], sin[:, 0], keys, values, torch.tensor(place))
    torch.testing.assert_close(got, want_q[:, :, 0])
    torch.testing.assert_close(keys[:, :, place], want_k[:, :, 0])
    assert torch.equal(values[:, :, place], v[:, :, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotation_in_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    qkv, cos, sin = draw(4, 3 * 2 * 32, seed=1, dtype=dtype), draw(4, 32, seed=2), draw(4, 32, seed=3)
    got, want = (
        OPS.rotate_and_store(
            x, cos, sin, *(torch.zeros(4, 2, 3, 32, dtype=x.dtype) for _ in range(2)), torch.tensor([0])
        )
        for x in (qkv, qkv.double())
    )
    assert got.dtype == dtype
    half_a_unit = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(got.double(), want, rtol=half_a_unit * 1.01, atol=1e-6)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_attention_is_that_of_transformers(group: int) -> None:
    n, s, length, first = 3, 11, 8, [0, 2, 7]
    q, keys, values = draw(n, 4, 16, seed=1), draw(n, 4 // group, s, 16, seed=2), draw(n, 4 // group, s, 16, seed=3)
    allowed = torch.tensor([[start <= place < length for place in range(s)] for start in first])
    mask = torch.zeros(n, 1, 1, s).masked_fill(~allowed[:, None, None], torch.finfo(torch.float32).min)
    module: Any = SimpleNamespace(num_key_value_groups=group, training=False)
    want, _ = eager_attention_forward(module, q[:, :, None], keys, values, mask, scaling=16**-0.5)
    got = OPS.decode_attention(q, keys, values, torch.tensor(first), torch.tensor(length))
    torch.testing.assert_close(got, want[:, 0])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_attention_sees_its_places_and_nothing_else(data: st.DataObject) -> None:
    n, s, head_dim = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12)), data.draw(st.sampled_from([1, 6, 16]))
    kv_heads, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    length = data.draw(st.integers(0, s))
    first = data.draw(st.lists(st.integers(0, s), min_size=n, max_size=n))
    q = draw(n, kv_heads * group, head_dim, seed=s, scale=4.0)
    keys, values = draw(n, kv_heads, s, head_dim, seed=1, scale=4.0), draw(n, kv_heads, s, head_dim, seed=2)
    want = attended_in_float64(q, keys, values, first, length)
    for row, start in enumerate(first):
        keys[row, :, :start] = values[row, :, :start] = torch.nan
        keys[row, :, length:] = values[row, :, length:] = torch.nan
    got = OPS.decode_attention(q, keys, values, torch.tensor(first), torch.tensor([length], dtype=torch.int32))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32])
def test_norm_is_that_of_transformers_to_the_bit(dtype: torch.dtype, weight_dtype: torch.dtype | None) -> None:
    norm = LlamaRMSNorm(40, eps=1e-5)
    norm.weight.data = draw(40, seed=1, dtype=weight_dtype or dtype)
    x, delta = draw(3, 40, seed=2, dtype=dtype), draw(3, 40, seed=3, dtype=dtype)
    total, normed = OPS.add_rms_norm(x, delta, norm.weight, 1e-5)
    assert torch.equal(total, x + delta)
    assert torch.equal(normed, norm(x + delta))
    assert normed.dtype == (weight_dtype or dtype)
    unchanged, normed = OPS.add_rms_norm(x, None, norm.weight, 1e-5)
    assert torch.equal(unchanged, x)
    assert torch.equal(normed, norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul_is_that_of_transformers_to_the_bit(dtype: torch.dtype) -> None:
    mlp = LlamaMLP(config()).to(dtype)
    x = draw(3, 96, seed=1, scale=3.0, dtype=dtype)
    gate_up = torch.cat((mlp.gate_proj(x), mlp.up_proj(x)), dim=1)
    assert torch.equal(mlp.down_proj(OPS.silu_mul(gate_up)), mlp(x))


def decoded(model: LlamaModel, ops: DecodeOperations, embedded: Tensor, first: Tensor) -> Tensor:
    """The last hidden states of `embedded` (N, T, H), fed one token at a time; rows begin at place `first`."""
    sizes = model.config
    n, steps, _ = embedded.shape
    shape = (n, sizes.num_key_value_heads, steps, sizes.head_dim)
    caches = [(torch.full(shape, torch.nan), torch.full(shape, torch.nan)) for _ in model.layers]
    place = torch.zeros(1, dtype=torch.int64)
    hidden = []
    for step in range(steps):
        place.fill_(step)
        positions = (place - first).clamp(min=0)[:, None]
        cos, sin = (table[:, 0] for table in model.rotary_emb(embedded, positions))
        x, delta = embedded[:, step], None
        for layer, (keys, values) in zip(model.layers, caches, strict=True):
            norm, attention, mlp = layer.input_layernorm, layer.self_attn, layer.mlp
            x, normed = ops.add_rms_norm(x, delta, norm.weight, norm.variance_epsilon)
            qkv = torch.cat([p(normed) for p in (attention.q_proj, attention.k_proj, attention.v_proj)], dim=1)
            q = ops.rotate_and_store(qkv, cos, sin, keys, values, place)
            delta = attention.o_proj(ops.decode_attention(q, keys, values, first, place + 1).flatten(1))
            norm = layer.post_attention_layernorm
            x, normed = ops.add_rms_norm(x, delta, norm.weight, norm.variance_epsilon)
            delta = mlp.down_proj(ops.silu_mul(torch.cat((mlp.gate_proj(normed), mlp.up_proj(normed)), dim=1)))
        hidden.append(ops.add_rms_norm(x, delta, model.norm.weight, model.norm.variance_epsilon)[1])
    return torch.stack(hidden, dim=1)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_trunk_made_of_them_is_transformers_llama(backend: str) -> None:
    torch.manual_seed(0)
    model = LlamaModel(config(attn_implementation="eager")).eval()
    embedded, first = draw(2, 6, 96, seed=5), torch.tensor([0, 2])  # the second row is padded on the left
    seen = torch.arange(6) >= first[:, None]
    with torch.no_grad():
        positions = (torch.arange(6) - first[:, None]).clamp(min=0)
        want = model(inputs_embeds=embedded, attention_mask=seen.long(), position_ids=positions).last_hidden_state
        got = decoded(model, operations(backend, "cpu").decoding, embedded, first)
    torch.testing.assert_close(got[seen], want[seen], rtol=1e-4, atol=1e-5)


def test_nothing_is_read_back_from_the_device() -> None:
    """Fake tensors have no values: what looked at one, or made a shape of it, would raise."""
    with FakeTensorMode():
        keys, values = torch.empty(2, 2, 9, 8), torch.empty(2, 2, 9, 8)
        place = torch.empty((), dtype=torch.int64)
        q = OPS.rotate_and_store(torch.empty(2, 64), torch.empty(2, 8), torch.empty(2, 8), keys, values, place)
        out = OPS.decode_attention(q, keys, values, torch.empty(2, dtype=torch.int64), place + 1)
        total, _ = OPS.add_rms_norm(out.flatten(1), out.flatten(1), torch.empty(32), 1e-6)
        assert OPS.silu_mul(total).shape == (2, 16)


CACHE, ONE, FIRST = torch.zeros(2, 2, 5, 8), torch.tensor(1), torch.zeros(2, dtype=torch.int64)
TABLE = torch.zeros(2, 8)
MISTAKES: list[tuple[str, str, tuple[Any, ...]]] = [
    (
        "rotate_and_store",
        r"qkv: shape \(3, 64\).*\(2, 2, 5, 8\)",
        (torch.zeros(3, 64), TABLE, TABLE, CACHE, CACHE, ONE),
    ),
    (
        "rotate_and_store",
        r"qkv: shape \(2, 32\) holds 4 heads of 8, .*Hkv=2",
        (torch.zeros(2, 32), TABLE, TABLE, CACHE, CACHE, ONE),
    ),
    (
        "rotate_and_store",
        r"qkv: shape \(2, 56\) holds 7 heads of 8, .*Hkv=2",
        (torch.zeros(2, 56), TABLE, TABLE, CACHE, CACHE, ONE),
    ),
    (
        "rotate_and_store",
        "qkv: dtype torch.float16, but the cache holds torch.float32",
        (torch.zeros(2, 64).half(), TABLE, TABLE, CACHE, CACHE, ONE),
    ),
    (
        "rotate_and_store",
        r"sin: torch.float32 of shape \(2, 4\), expected floating \(N, D\) = \(2, 8\)",
        (torch.zeros(2, 64), TABLE, TABLE[:, :4], CACHE, CACHE, ONE),
    ),
    (
        "rotate_and_store",
        r"values: torch.float32 of shape \(2, 2, 4, 8\), but keys .*\(2, 2, 5, 8\)",
        (torch.zeros(2, 64), TABLE, TABLE, CACHE, CACHE[:, :, :4], ONE),
    ),
    (
        "rotate_and_store",
        r"place: torch.int64 of shape \(2,\), expected int32 or int64, one element",
        (torch.zeros(2, 64), TABLE, TABLE, CACHE, CACHE, FIRST),
    ),
    ("decode_attention", r"q: shape \(2, 3, 8\).*\(2, 2, 5, 8\)", (torch.zeros(2, 3, 8), CACHE, CACHE, FIRST, ONE)),
    (
        "decode_attention",
        "q: dtype torch.float64, but the cache holds torch.float32",
        (torch.zeros(2, 4, 8).double(), CACHE, CACHE, FIRST, ONE),
    ),
    (
        "decode_attention",
        r"first: torch.int64 of shape \(1,\), expected int32 or int64 \(N,\) = \(2,\)",
        (torch.zeros(2, 4, 8), CACHE, CACHE, FIRST[:1], ONE),
    ),
    (
        "decode_attention",
        r"length: torch.float32 of shape \(\)",
        (torch.zeros(2, 4, 8), CACHE, CACHE, FIRST, ONE.float()),
    ),
    ("decode_attention", r"keys: .*\(2, 5, 8\), expected", (torch.zeros(2, 4, 8), CACHE[:, 0], CACHE, FIRST, ONE)),
    ("add_rms_norm", r"x: .*\(2, 2, 8\), expected floating \(N, H\)", (torch.zeros(2, 2, 8), None, TABLE[0], 1e-6)),
    ("add_rms_norm", r"delta: .*\(1, 8\), but x is .*\(2, 8\)", (TABLE, TABLE[:1], TABLE[0], 1e-6)),
    ("add_rms_norm", r"weight: .*\(2, 8\), expected floating \(H,\) = \(8,\)", (TABLE, TABLE, TABLE, 1e-6)),
    ("silu_mul", r"gate_up: .*\(2, 7\), expected floating \(N, 2\*I\)", (TABLE[:, :7],)),
]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("name", "message", "arguments"), MISTAKES)
def test_shapes_that_do_not_fit_are_named(backend: str, name: str, message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(operations(backend, "cpu").decoding, name)(*arguments)
