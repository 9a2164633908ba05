"""The model card: its YAML is what the hub reads, its snippet runs, its figures are the run's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from src.cli import command as cli
from src.export.command import COMMAND
from src.export.model_card import CardFacts, front_matter, hub_name, scores, wilson
from tests.tiny_run import lora_run

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"  # what the wheel built for CUDA says


def parts(page: str) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    _, head, body = page.split("---\n", 2)
    return yaml.safe_load(head), body


def execute_snippet(folder: Path, check: str, broken_torchvision: Path | None) -> None:
    """Run the card's code as it stands, then `check`, in a fresh process that cannot import this project.

    broken_torchvision: an empty folder for a torchvision that cannot be imported; None: the installed one, if any.
    """
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    path = [entry for entry in sys.path if entry.endswith("-packages")]
    if broken_torchvision is not None:
        (broken_torchvision / "torchvision").mkdir()
        (broken_torchvision / "torchvision" / "__init__.py").write_text(BROKEN)
        path.insert(0, str(broken_torchvision))
    # -S and -P leave the checkout out, even where it is installed editable.
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", snippet + check], cwd=folder, capture_output=True, text=True, timeout=240,
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("torchvision", ["installed", "broken"])
def test_the_card_of_an_adapter_and_its_snippet(torchvision: str, tmp_path: Path) -> None:
    run, out = lora_run(), tmp_path / "mine"
    assert cli.run(COMMAND, [f"run={run.path}", f"out={out}"]) == 0
    head, body = parts((out / "README.md").read_text(encoding="utf-8"))
    assert (head["library_name"], head["license"], head["pipeline_tag"]) == ("peft", "apache-2.0", "text-to-image")
    assert {"lora", "bicot-grpo"} <= set(head["tags"])
    assert "base_model" not in head, "the embedded base has no name on the hub, and a path is none"
    summary = run.read_summary()
    assert summary is not None
    assert f"| reward | {summary['reward_before']:.3f} | {summary['reward_after']:.3f} |" in body
    assert f"`{summary['git_commit']}`" in body
    assert "| learning rate | 0.01 |" in body
    assert "| rewards | shapes |" in body
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", body):
        assert (out / picture).read_bytes() == (run.path / picture).read_bytes()
    assert body.count("![") == 2

    execute_snippet(
        out,
        "from safetensors.torch import save_file\n"
        "from peft import get_peft_model_state_dict\n"
        "save_file({n: v.contiguous() for n, v in get_peft_model_state_dict(model).items()}, 'loaded.safetensors')\n",
        tmp_path if torchvision == "broken" else None,
    )
    loaded, written = load_file(out / "loaded.safetensors"), load_file(out / "adapter_model.safetensors")
    assert loaded.keys() == written.keys()
    assert all(bool((loaded[name] == written[name]).all()) for name in written)


def test_the_snippet_of_a_merged_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert cli.run(COMMAND, [f"run={lora_run().path}", f"out={out}", "merge=true"]) == 0
    check = (
        "import torch\n"
        "torch.save((model.lm_head.weight, processor.tokenizer('a red circle')['input_ids']), 'loaded.pt')\n"
    )
    execute_snippet(out, check, tmp_path)
    head, words = torch.load(out / "loaded.pt")
    assert torch.equal(head, load_file(out / "model.safetensors")["lm_head.weight"])
    assert len(words) >= 3


def test_names_on_the_hub_and_licences(tmp_path: Path) -> None:
    cached = tmp_path / "models--deepseek-community--Janus-Pro-1B" / "snapshots" / "0123abc"
    assert hub_name(cached) == "deepseek-community/Janus-Pro-1B"
    assert hub_name(tmp_path) is None
    assert hub_name(tmp_path, "me/base") == "me/base"
    janus = CardFacts("x", hub_name(cached), cached, "peft")
    head = yaml.safe_load(front_matter(janus).strip("-\n"))
    assert head["base_model"] == "deepseek-community/Janus-Pro-1B"
    assert head["base_model_relation"] == "adapter"
    assert (head["license"], head["license_name"]) == ("other", "deepseek-model-license")
    assert "license" not in front_matter(CardFacts("x", "me/base", tmp_path, "transformers"))
    assert "license: mit" in front_matter(CardFacts("x", "me/base", tmp_path, "transformers", "mit"))


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29 by the score method without continuity correction.
    [
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_figures(share: float, n: int, low: float, high: float) -> None:
    assert wilson(share, n) == pytest.approx((low, high), abs=5e-5)


def test_intervals_stand_where_pictures_are_independent() -> None:
    summary = {
        "reward_before": 0.4, "reward_after": 0.75, "all_correct_before": 0.0, "all_correct_after": 81 / 263,
        "by_kind": {"pair": {"before": {"reward": 0.4, "n": 263.0}, "after": {"reward": 0.75, "n": 263.0}}},
    }  # fmt: skip
    table = scores(summary, prompts_once=True)
    assert "| all_correct | 0.000 [0.000, 0.014] | 0.308 [0.255, 0.366] |" in table
    assert "| reward | 0.400 | 0.750 |" in table
    assert "| pair | 263 | 0.400 | 0.750 |" in table
    assert "[" not in scores(summary, prompts_once=False)
    assert scores({"reward_before": 0.4, "reward_after": None}, True) == ""
    assert scores(None, True) == ""
