"""The aesthetic predictor: five released layers as one, on timm's tower, held to both written out in float64."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from src.hub import WeightsNotFound
from src.rewards.experts.aesthetic import LAYERS, Aesthetic, collapse
from src.rewards.vision.weights import WeightsMismatch
from tests.rewards.literal import clip_image, quick_gelu
from tests.rewards.tiny_experts import aesthetic as tiny
from tests.rewards.tiny_experts.hps import SIZES, open_clip_state

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
FILE = Path("predictor.pth")
RELEASED = tiny.predictor(tiny.RELEASED)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.write(tmp_path_factory.mktemp("aesthetic"))


def layer_by_layer(state: dict[str, Tensor], embedding: Tensor) -> float:
    x = embedding.double()
    for place in LAYERS:
        x = x @ state[f"layers.{place}.weight"].double().T + state[f"layers.{place}.bias"].double()
    return x.item()


def test_score_on_openais_weights_is_their_embedding_rated_layer_by_layer(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    """OpenAI's names, read by timm; their activation is the quick one, their embedding is normalised."""
    state = open_clip_state(SIZES)
    state["visual.proj"] = torch.randn(SIZES.vision_width, tiny.WIDTH, generator=torch.Generator().manual_seed(3))
    torch.save(state, tmp_path / "ViT.pt")
    pixels = torch.rand(3, 3, 8, 8)
    scores = Aesthetic(**arguments | {"tower_path": tmp_path / "ViT.pt"}).score(pixels, tiny.records(3))
    for row, image in enumerate(pixels):
        embedding = F.normalize(clip_image(state, (image - MEAN) / STD, heads=3, activation=quick_gelu), dim=0)
        assert scores[row].item() == pytest.approx(layer_by_layer(tiny.predictor(tiny.TINY), embedding), abs=1e-5)


@given(st.integers(0, 10_000))
def test_one_vector_rates_like_the_released_layers_and_stays_in_range(seed: int) -> None:
    """The released sizes; both ends of the range are reached, at the embeddings along the vector."""
    weight, bias = collapse(RELEASED, FILE)
    e = F.normalize(torch.randn(768, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=0)
    assert (e @ weight + bias).item() == pytest.approx(layer_by_layer(RELEASED, e), abs=1e-10)
    assert abs((e @ weight).item()) <= weight.norm().item()
    for sign in (-1, 1):
        end = layer_by_layer(RELEASED, sign * weight / weight.norm())
        assert end == pytest.approx((bias + sign * weight.norm()).item(), abs=1e-10)


def test_released_layers_follow_each_other() -> None:
    """The shapes the tests take for released ones are those of a chain from 768 numbers to one."""
    assert all(after[1] == before[0] for before, after in pairwise(tiny.RELEASED.values()))


def test_range_belongs_to_the_weights(arguments: dict[str, Any]) -> None:
    expert = Aesthetic(**arguments)
    weight, bias = collapse(tiny.predictor(tiny.TINY), FILE)
    assert expert.score_range == pytest.approx(((bias - weight.norm()).item(), (bias + weight.norm()).item()))
    assert Aesthetic.score_range == (float("-inf"), float("inf"))


def test_a_predictor_with_activations_is_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    """With ReLUs between them the layers stand at other places of the sequence."""
    state = tiny.predictor({0: (9, 12), 3: (8, 9), 6: (7, 8), 9: (6, 7), 11: (1, 6)})
    torch.save(state, tmp_path / "relu.pth")
    with pytest.raises(WeightsMismatch, match=r"relu\.pth: these weights do not fit \(6 missing: layers\.2\.bias"):
        Aesthetic(**arguments | {"path": tmp_path / "relu.pth"})


def test_a_tower_of_another_size_is_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    """timm alone would draw a head of another width at random."""
    state = tiny.predictor(tiny.TINY | {0: (9, tiny.WIDTH + 1)})
    torch.save(state, tmp_path / "wider.pth")
    with pytest.raises(
        WeightsMismatch, match=r"tower\.safetensors: does not fit timm's tiny_clip_quickgelu with 13 outputs"
    ):
        Aesthetic(**arguments | {"path": tmp_path / "wider.pth"})


def test_the_predictor_has_no_default_place(arguments: dict[str, Any]) -> None:
    with pytest.raises(WeightsNotFound, match="path: not set; give the path of the weights"):
        Aesthetic(**arguments | {"path": None})


def test_the_default_tower_is_openais() -> None:
    """timm's name of the default is the architecture OpenAI's ViT-L/14 belongs to, with its own activation."""
    import timm
    from timm.models import get_pretrained_cfg

    name = "vit_large_patch14_clip_quickgelu_224"
    with torch.device("meta"):
        tower = timm.create_model(name, num_classes=768)
    assert get_pretrained_cfg(f"{name}.openai").hf_hub_id == "timm/vit_large_patch14_clip_224.openai"
    assert tower.patch_embed.img_size == (224, 224)
    assert type(tower.blocks[0].mlp.act).__name__ == "QuickGELU"
    assert sum(value.numel() for value in tower.parameters()) == 303_966_208 + 768


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_no_code_of_a_towers_file_is_run(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever timm's own reader does: version 1.0.20 unpickles everything."""
    reader = "timm.models._builder.load_state_dict"
    monkeypatch.setattr(reader, lambda file, **_: torch.load(file, map_location="cpu", weights_only=False))
    torch.save({"x": Trap(tmp_path / "ran")}, tmp_path / "tower.pt")
    with pytest.raises(WeightsMismatch, match=r"tower\.pt: cannot be read"):
        Aesthetic(**arguments | {"tower_path": tmp_path / "tower.pt"})
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(WeightsMismatch, match=r"cut\.safetensors: cannot be read"):
        Aesthetic(**arguments | {"tower_path": tmp_path / "cut.safetensors"})


@pytest.mark.parametrize("tower", ["hf-hub:someone/something", "local-dir:/somewhere", "hf_hub:a/b", "a/b", ""])
def test_a_tower_comes_from_nowhere_but_timm(arguments: dict[str, Any], tower: str) -> None:
    with pytest.raises(ValueError, match=r"^tower="):
        Aesthetic(**arguments | {"tower": tower})
