"""Products of a group over the trained tensors themselves: right, without a copy, and nobody else notices."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.policies.engine.fused import Form, Projection, in_one_storage
from src.policies.janus import JanusPolicy
from src.values import IMAGE, PLAN
from tests.policies.oracle import level_logps
from tests.policies.test_decoder import contexts, some_ids, stepwise_logps
from tests.policies.tiny import draw_adapter, exact_policy, tiny_janus, tiny_policy

FORMS: tuple[Form, ...] = ("in_place", "separate", "merged")
# name -> what tiny_policy is made with; which modules have adapters decides how their products are grouped
KINDS: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "equal widths": {"kv_heads": 4},
    "some targets": {"lora": {"r": 2, "targets": ["q_proj", "v_proj", "up_proj"]}},
    "one target": {"lora": {"r": 2, "targets": ["k_proj", "down_proj"]}},
    "no adapter": {"lora": None},
}


def groups(policy: JanusPolicy) -> list[list[Any]]:
    """The linears of the first layer that read the same input."""
    layer = policy.janus.model.language_model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    return [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]


def an_input(modules: list[Any], *shape: int) -> Tensor:
    weight = getattr(modules[0], "base_layer", modules[0]).weight
    return torch.randn(*shape, weight.shape[1], dtype=weight.dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_projection_is_its_modules_side_by_side(kind: str, form: Form) -> None:
    policy = exact_policy(**KINDS[kind])
    with torch.no_grad():
        for modules in groups(policy):
            x = an_input(modules, 5, 3)
            expected = torch.cat([module(x) for module in modules], dim=-1)
            torch.testing.assert_close(Projection(modules, True, form)(x), expected, atol=1e-10, rtol=0)
            if policy.adapter is not None:
                with policy.adapter.disable_adapter():
                    bare = torch.cat([module(x) for module in modules], dim=-1)
                torch.testing.assert_close(Projection(modules, False, form)(x), bare, atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", ["in_place", "separate"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_the_update_is_rounded_once_as_by_peft(kind: str, form: Form) -> None:
    """The adapter is float32 there; up to the order of sums inside a product the results are PEFT's bit for bit."""
    policy = tiny_policy(**KINDS[kind], dtype=torch.bfloat16)
    with torch.no_grad():
        for modules in groups(policy):
            x = an_input(modules, 7)
            expected = torch.cat([module(x) for module in modules], dim=-1)
            got = Projection(modules, True, form)(x)
            assert got.dtype == torch.bfloat16
            # One unit in the last place, where the sums' order tips a rounding.
            torch.testing.assert_close(got, expected, atol=0, rtol=2**-7)
            assert (got != expected).float().mean() < 0.02


def test_the_group_lies_in_one_storage_and_the_parameters_stay_themselves() -> None:
    policy = tiny_policy(kv_heads=4, merge_rollout=False)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in policy.named_parameters()}
    policy.decoder()
    for name, parameter in policy.named_parameters():
        same, value = before[name]
        assert parameter is same
        assert torch.equal(parameter, value)
    attention = policy.janus.model.language_model.layers[1].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    for weights in (
        [part.base_layer.weight for part in parts],
        [part.lora_A["default"].weight for part in parts],
        [part.lora_B["default"].weight for part in parts],
    ):
        ends = [weight.data_ptr() + weight.numel() * weight.element_size() for weight in weights]
        assert [weight.data_ptr() for weight in weights[1:]] == ends[:-1]
        again = in_one_storage(weights)
        assert again.data_ptr() == weights[0].data_ptr(), "the second time nothing is copied"
        assert torch.equal(again, torch.cat([weight.detach() for weight in weights]))


def test_nothing_is_held_twice() -> None:
    """All memory a policy's decoder reads belongs to parameters, but for the image tokens' table."""
    policy = tiny_policy(merge_rollout=False)
    trunk = policy.decoder()._trunk
    owned = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    for layer in trunk.layers:
        for projection in (layer.qkv, layer.out, layer.gate_up, layer.down):
            tensors = [weight for weight, _ in projection._base] + [projection._down, projection._up]
            tensors += [t for adapter in projection._adapters for t in (adapter.down, adapter.up)]
            assert {t.untyped_storage().data_ptr() for t in tensors if t is not None} <= owned


def agrees_with_the_modules(policy: JanusPolicy, decoder: Any) -> None:
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 5)
    stepwise = stepwise_logps(decoder, PLAN, context, ids)
    torch.testing.assert_close(stepwise, level_logps(policy.janus, PLAN, context, ids), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [{}, {"lora": None}], ids=["lora", "full"])
def test_optimiser_steps_are_seen_by_the_decoder_that_was_there_before(kind: dict[str, Any]) -> None:
    policy = exact_policy(merge_rollout=False, **kind)
    decoder = policy.decoder()
    trained = [p for p in policy.parameters() if p.requires_grad]
    for optimizer in (torch.optim.AdamW(trained, lr=0.05, foreach=True), torch.optim.SGD(trained, lr=0.1)):
        context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 5)
        before = level_logps(policy.janus, PLAN, context, ids)
        for parameter in trained:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        assert (level_logps(policy.janus, PLAN, context, ids) - before).abs().max() > 0.1
        agrees_with_the_modules(policy, decoder)
        assert policy.decoder() is decoder


def test_gradients_are_those_of_a_policy_that_never_decoded() -> None:
    fresh, used = tiny_policy(merge_rollout=False), tiny_policy(merge_rollout=False)
    used.decoder()
    for policy in (fresh, used):
        embedded = policy.janus.get_input_embeddings()(contexts(policy, PLAN).ids)
        policy.janus.model.language_model(inputs_embeds=embedded).last_hidden_state.square().sum().backward()
    theirs = dict(fresh.named_parameters())
    for name, parameter in used.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, theirs[name].grad)


def test_disabling_the_adapter_makes_another_decoder_and_enabling_it_again_too() -> None:
    policy = exact_policy(merge_rollout=False)
    on = policy.decoder()
    with policy.adapter.disable_adapter():
        off = policy.decoder()
        assert off is not on
        agrees_with_the_modules(policy, off)
    agrees_with_the_modules(policy, policy.decoder())
    with policy.reference() as reference, policy.adapter.disable_adapter():
        agrees_with_the_modules(policy, reference)


@pytest.mark.parametrize(
    "move", [lambda p: p.to(torch.bfloat16).to(torch.float64), lambda p: copy.deepcopy(p)], ids=["to", "deepcopy"]
)
def test_moved_or_copied_weights_get_a_decoder_of_their_own(move: Any) -> None:
    policy = exact_policy(merge_rollout=False)
    old = policy.decoder()
    moved = move(policy)
    draw_adapter(moved, 0.2, seed=9)
    assert moved.decoder() is not old
    agrees_with_the_modules(moved, moved.decoder())


def test_loading_a_state_dict_is_seen() -> None:
    policy, other = exact_policy(merge_rollout=False), exact_policy(seed=3, merge_rollout=False)
    decoder = policy.decoder()
    policy.load_state_dict(other.state_dict())
    agrees_with_the_modules(policy, decoder)
    assert policy.decoder() is not decoder, "the image tokens' embeddings were made of the old generation side"
    agrees_with_the_modules(other, policy.decoder())
    decoder, context = policy.decoder(), contexts(policy, IMAGE)
    ids = some_ids(IMAGE, 4, 5)
    expected = level_logps(other.janus, IMAGE, context, ids)
    torch.testing.assert_close(stepwise_logps(decoder, IMAGE, context, ids), expected, atol=1e-10, rtol=0)
    policy.load_state_dict(exact_policy(seed=4, merge_rollout=False).state_dict(), assign=True)
    assert policy.decoder() is not decoder
    agrees_with_the_modules(policy, policy.decoder())


def test_saved_files_hold_what_they_held_before(tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    policy = tiny_policy(kv_heads=4, merge_rollout=False)
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.decoder()

    buffer = io.BytesIO()
    torch.save(policy.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())

    trained = {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}
    save_file(trained, tmp_path / "trained.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in load_file(tmp_path / "trained.safetensors").items())

    policy.adapter.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(tiny_janus(kv_heads=4), str(tmp_path / "adapter"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[f"network.{name}"]), name


def test_a_fully_trained_model_saves_its_views_as_its_weights(tmp_path: Path) -> None:
    policy = tiny_policy(lora=None, merge_rollout=False)
    policy.decoder()
    policy.janus.save_pretrained(tmp_path)
    loaded = type(policy.janus).from_pretrained(tmp_path, tie_word_embeddings=False)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, policy.janus.state_dict()[name]), name


def test_ddp_wraps_and_averages_views_like_any_parameter(tmp_path: Path) -> None:
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    policy = exact_policy(merge_rollout=False)
    decoder = policy.decoder()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        inner = policy.janus.model.language_model
        wrapped = DistributedDataParallel(inner)
        optimizer = torch.optim.SGD([p for p in inner.parameters() if p.requires_grad], lr=0.5)
        x = torch.randn(2, 4, inner.config.hidden_size, dtype=torch.float64)
        wrapped(inputs_embeds=x).last_hidden_state.square().sum().backward()
        optimizer.step()
    finally:
        dist.destroy_process_group()
    assert policy.decoder() is decoder
    agrees_with_the_modules(policy, decoder)


def test_another_kind_of_adapter_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"], use_dora=True))
    with pytest.raises(ValueError, match="only plain LoRA can be decoded"):
        Projection([model.base_model.model[0]], True, "in_place")


def test_linears_with_biases_stay_apart() -> None:
    linears = [nn.Linear(4, 3), nn.Linear(4, 2, bias=False)]
    x = torch.randn(5, 4)
    with torch.no_grad():
        expected = torch.cat([linear(x) for linear in linears], dim=-1)
        for form in FORMS:
            torch.testing.assert_close(Projection(linears, True, form)(x), expected)
        projection = Projection(linears, True, "in_place")
        linears[0].bias.add_(1.0)
        assert torch.equal(projection(x)[:, :3], linears[0](x)), "the bias, too, is the trained tensor"
