"""The metric side of an expert."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch

from src.rewards.base import RewardError
from tests.conftest import ROOT, RunPython
from tests.rewards.toy import Brightness, NamedChannel, about, flat_images


def test_mean_is_over_applicable_images_only() -> None:
    expert = NamedChannel()
    expert.update(flat_images((0.5, 0, 0), (1, 1, 1), (0, 0.25, 0)), [about("red"), about("cat"), about("green")])
    expert.update(flat_images((1, 1, 1)), [about("dog")])
    assert expert.compute().item() == 0.375


def test_mean_of_nothing_is_nan() -> None:
    expert = NamedChannel()
    expert.update(flat_images((1, 1, 1)), [about("dog")])
    assert expert.compute().isnan()


def test_known_scores_are_taken_without_looking_again() -> None:
    expert = Brightness()
    expert.update(flat_images((0, 0, 0)), [about("red")], torch.tensor([0.75]))
    assert expert.compute().item() == 0.75


def test_reward_error_survives_a_worker_process() -> None:
    error = RewardError("clip", "no weights", "a cat")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.expert, copy.problem, copy.prompt) == ("clip", "no weights", "a cat")
    assert str(copy) == str(error) == "reward expert 'clip': no weights (prompt: 'a cat')"


@pytest.mark.slow
def test_two_processes_agree_on_the_mean_of_all_images(run_python: RunPython, tmp_path: Path) -> None:
    """gloo; three images on one rank, one on the other: the mean is over the four."""
    (tmp_path / "ranks.py").write_text(
        "import src, torch.distributed as dist\n"
        "from tests.rewards.toy import Brightness, about, flat_images\n"
        "def work(rank, store):\n"
        "    dist.init_process_group('gloo', init_method='file://' + store, rank=rank, world_size=2)\n"
        "    greys = [(0.0,) * 3, (0.5,) * 3, (0.25,) * 3] if rank == 0 else [(1.0,) * 3]\n"
        "    expert = Brightness()\n"
        "    expert.update(flat_images(*greys), [about('red')] * len(greys))\n"
        "    print(f'rank {rank}: {expert.compute().item()}', flush=True)\n"
        "    dist.destroy_process_group()\n"
    )
    code = f"import torch, ranks; torch.multiprocessing.spawn(ranks.work, ({str(tmp_path / 'store')!r},), nprocs=2)"
    done = run_python(code, path=[tmp_path, ROOT])
    found = re.findall(r"rank \d: [\d.]+", done.stdout)
    assert sorted(found) == ["rank 0: 0.4375", "rank 1: 0.4375"], done.stderr
