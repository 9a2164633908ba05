"""Which loggers a run gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.build import plain
from src.config.errors import UserError
from src.loggers import build
from src.loggers.build import build_loggers, log_parameters, run_id
from src.loggers.facts import RunFacts
from src.runs.folder import RunFolder
from src.runs.metrics_file import MetricsFile
from tests.tiny_run import default_config


def facts(folder: Path, *overrides: str) -> tuple[RunFacts, OmegaConf]:
    config = default_config(*overrides)
    return RunFacts(RunFolder(folder), plain(config)), config.logger


def test_csv_is_metrics_csv_alone(tmp_path: Path) -> None:
    run, node = facts(tmp_path, "logger=csv")
    (logger,) = build_loggers(node, run)
    assert isinstance(logger, MetricsFile)
    assert logger.path == tmp_path / "metrics.csv"


@pytest.mark.parametrize("choice", ["tensorboard", "wandb"])
def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    run, node = facts(tmp_path, f"logger={choice}")
    with pytest.raises(UserError) as caught:
        build_loggers(node, run)
    assert f"{choice} is not installed" in str(caught.value)
    assert 'pip install -e ".[loggers]"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_key_or_target_is_the_users_error(tmp_path: Path) -> None:
    run, _ = facts(tmp_path)
    for node, message in (
        ({"_target_": "lightning.pytorch.loggers.CSVLogger", "nmae": "x"}, "nmae"),
        ({"_target_": "no.such.Logger"}, "no.such.Logger"),
    ):
        with pytest.raises(UserError, match=message):
            build_loggers(OmegaConf.create(node), run)


def test_any_lightning_logger_gets_the_run_folder(tmp_path: Path) -> None:
    run, _ = facts(tmp_path)
    node = OmegaConf.create({"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "plain", "version": ""})
    _, logger = build_loggers(node, run)
    assert logger.save_dir == str(tmp_path)


def test_the_name_of_a_run_is_kept_for_a_resumed_one(tmp_path: Path) -> None:
    first = run_id(tmp_path / "a")
    assert first
    assert run_id(tmp_path / "a") == first
    assert run_id(tmp_path / "b") != first


def test_tensorboard_writes_into_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, node = facts(tmp_path, "logger=tensorboard")
    loggers = build_loggers(node, run)
    log_parameters(loggers, run)
    loggers[1].log_metrics({"plan/kl": 0.25}, step=3)
    loggers[1].finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("plan/kl")] == [(3, 0.25)]


@pytest.mark.slow
def test_wandb_works_offline(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run, node = facts(tmp_path, "logger=wandb", "logger.offline=true")
    loggers = build_loggers(node, run)
    log_parameters(loggers, run)
    loggers[1].log_metrics({"plan/kl": 0.25}, step=3)
    experiment = loggers[1].experiment
    assert experiment.id == run_id(tmp_path)
    assert experiment.config["beta"] == "0.02"
    loggers[1].finalize("success")
    wandb.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
