"""Published weights: the user's path, the local cache, and a message where neither has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.hub import WeightsNotFound, find_directory, find_file

REPOSITORY = "somebody/some-model"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache with one snapshot of one file, and no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--somebody--some-model"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    (snapshot / "weights.safetensors").write_bytes(b"x")
    return snapshot


def test_a_path_wins(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"")
    assert find_directory("model.path", tmp_path, REPOSITORY) == tmp_path
    assert find_file("hps.path", file, REPOSITORY, "b.bin") == file


def test_the_cache_is_enough(cached: Path) -> None:
    assert find_directory("model.path", None, REPOSITORY) == cached
    assert find_file("model.path", None, REPOSITORY, "weights.safetensors") == cached / "weights.safetensors"


@pytest.mark.parametrize("repository", [None, "somebody/another-model"])
def test_what_is_not_at_hand_is_named(cached: Path, repository: str | None) -> None:
    with pytest.raises(WeightsNotFound, match=r"model\.path") as caught:
        find_directory("model.path", None, repository)
    if repository is not None:
        assert "hf download somebody/another-model" in str(caught.value)
    with pytest.raises(WeightsNotFound, match=r"hps\.path"):
        find_file("hps.path", None, repository, "b.bin")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="no such directory"):
        find_directory("model.path", tmp_path / "x", None)
    with pytest.raises(WeightsNotFound, match=r"no such file.*b\.bin"):
        find_file("hps.path", tmp_path / "x", None, "b.bin")
