"""One training run put together: module, data, callbacks, Lightning's Trainer, the grouped loop."""

from __future__ import annotations

import logging
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from src import build
from src.algorithms.kl import needs_reference
from src.cli.closed_output import watched_output
from src.config.errors import UserError
from src.loggers.build import build_loggers, log_parameters
from src.loggers.facts import RunFacts, dataset_facts, is_rank_zero
from src.policies.base import HasEngine
from src.policies.loaded import check_loaded, reference_note
from src.policies.prompt_checks import check_data, check_metadata
from src.runs.checkpoint_io import SoundCheckpointIO
from src.runs.config import write_run_config
from src.runs.console import say
from src.runs.folder import RunFolder
from src.runs.provenance import hardware, reset_peak_memory
from src.runs.resume import check_files, check_settings, finished_batches, forget_other_run, refuse_other_weights
from src.training.callbacks import (
    BestByValidation,
    CheckLoaded,
    GracefulStop,
    ResumableCheckpoint,
    RewardWatch,
    RunReport,
    StepLogs,
    StepProgress,
    ValidationSheets,
)
from src.training.callbacks.report import spread
from src.training.loop import GroupedRolloutLoop
from src.training.module import BiCoTModule
from src.training.preflight import fit_to_memory
from src.training.rank_watch import RankWatch
from src.training.sharded import ShardedStrategy
from src.training.watchdog import Watchdog


@dataclass(slots=True)
class Session:
    """A run that is ready to `fit`."""

    trainer: L.Trainer
    module: BiCoTModule
    data: Any
    report: RunReport
    stop: GracefulStop
    loop: GroupedRolloutLoop
    watchdog: Watchdog
    rank_watch: RankWatch

    @property
    def is_global_zero(self) -> bool:
        return self.trainer.is_global_zero

    @classmethod
    def build(cls, config: DictConfig, folder: RunFolder, started: float, checkpoint: Path | None = None) -> Session:
        """Everything of the run, to go on from `checkpoint` if given.

        What the user gave is checked before any weight is loaded.
        """
        quiet()
        reset_peak_memory()
        build.build_algorithm(config)  # settings alone, so before any file is read
        operations, engine = build.build_operations(config), build.engine_settings(config)
        data = build.build_data(config)
        check_data(config, data)
        rewards = build.build_rewards(config)
        check_metadata(rewards, [*data.train_records, *data.validation_records, *data.test_records])
        silent = build.silent_experts(rewards, data)
        if checkpoint is not None:
            data.start_step = finished_batches(checkpoint)
            check_files(folder, checkpoint)
            check_settings(folder, config)
        elif is_rank_zero():
            forget_other_run(folder, config)
            check_files(folder, None)
        stop = GracefulStop()
        datasets = dataset_facts(config.data, data)
        facts = RunFacts(folder, build.plain(config), lambda: stop.code is not None, datasets)
        loggers = build_loggers(config.logger, facts)
        callbacks, report = _callbacks(config, folder, data, operations.name, stop, started)
        report.watch.silent_before(silent)
        rank_watch = RankWatch(config.watchdog.rank_seconds, folder.what_is_left)
        model = build.plain(config.model)
        checked = CheckLoaded(lambda policy, training: check_loaded(policy, model, checkpoint, training))
        callbacks[:0] = [rank_watch, checked]
        trainer = _trainer(config, folder, callbacks, loggers, SoundCheckpointIO(checkpoint))
        prompts, ranks = config.rollout.prompts_per_step, trainer.world_size
        if prompts % ranks:
            raise UserError(f"rollout.prompts_per_step={prompts}: expected a multiple of the number of ranks, {ranks}")
        loop = GroupedRolloutLoop.install(trainer)
        policy = build.build_policy(config)
        fitted = fit_to_memory(config, policy, data, rewards, trainer)
        report.facts["memory_estimate"] = fitted.figures()
        report.facts["rollout_graph"] = isinstance(policy, HasEngine) and engine.captures(build.device(config))
        module = build.build_module(config, policy, rewards, fitted.cut)
        if checkpoint is not None:
            refuse_other_weights(checkpoint, module.trained_state())
            if not folder.before_is_whole():
                report.initial = {name: value.clone() for name, value in module.trained_state().items()}
        if trainer.is_global_zero:
            write_run_config(folder.config, facts.config)
        log_parameters(loggers, facts)
        note = reference_note(config, needs_reference(config.algorithm.beta))
        if note is not None and checkpoint is None:
            say(note)
        watchdog = Watchdog(config.watchdog.seconds, folder.what_is_left)
        return cls(trainer, module, data, report, stop, loop, watchdog, rank_watch)

    def fit(self, checkpoint: Path | None) -> None:
        """Train, from `checkpoint` if given; raises StopRequested if a signal came outside of training steps."""
        with (
            watched_output(self.stop.output_closed),
            self.stop.handlers_kept(),
            self.watchdog,
            self.rank_watch.leaving_together(),
        ):
            self.trainer.fit(self.module, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)

    def end_others(self) -> None:
        """After an error here: end the processes that Lightning started, which would wait for this one for ever.

        Those of torchrun and SLURM are ended by who started them.
        """
        launcher = self.trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)


# trainer.strategy of the weights cut over ranks; every other name is Lightning's.
SHARDED = "fsdp"


def _callbacks(
    config: DictConfig, folder: RunFolder, data: Any, kernels: str, stop: GracefulStop, started: float
) -> tuple[list[L.Callback], RunReport]:
    settings, evaluation = build.evaluation_settings(config), config.evaluation
    validated = data.validation_records[: evaluation.validation_prompts]
    watch = RewardWatch(config.rewards.watch.window, config.rewards.watch.threshold)
    validation = BestByValidation(
        validated,
        settings,
        evaluation.every,
        evaluation.monitor,
        folder.best_weights,
        stop,
        ValidationSheets(validated, spread(validated, evaluation.picture_prompts), folder.validation_samples),
        watch,
    )
    report = RunReport(
        folder,
        data.test_records[: evaluation.test_prompts],
        settings,
        evaluation.picture_prompts,
        validation,
        watch,
        stop,
        {
            "name": config.run.name,
            "seed": config.run.seed,
            "kernels": kernels,
            "hardware": hardware(),
        },
        started,
    )
    callbacks: list[L.Callback] = [
        stop,
        StepLogs(folder.rollouts, config.checkpoint.rollouts_every),
        watch,
        validation,
        ResumableCheckpoint(folder.last_checkpoint, config.checkpoint.every, validation),
        report,
    ]
    if config.trainer.progress_bar:
        callbacks.append(StepProgress(-(-config.trainer.max_steps // config.algorithm.updates_per_rollout)))
    return callbacks, report


def _trainer(
    config: DictConfig, folder: RunFolder, callbacks: list[L.Callback], loggers: list[Logger], io: SoundCheckpointIO
) -> L.Trainer:
    settings = config.trainer
    full = config.model.get("lora", None) is None and config.model.get("adapter", None) is None
    chosen = precision(settings.precision, full and build.device(config).type == "cuda")
    strategy = settings.strategy
    if strategy == SHARDED:
        strategy, chosen = sharded_strategy(chosen, full), "32-true" if chosen == "bf16-mixed" else chosen
    try:
        return _made_trainer(settings, strategy, chosen, folder, callbacks, loggers, io)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {error}") from error


def _made_trainer(
    settings: Any,
    strategy: Any,
    chosen: Any,
    folder: RunFolder,
    callbacks: list[L.Callback],
    loggers: list[Logger],
    io: SoundCheckpointIO,
) -> L.Trainer:
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy,
        precision=chosen,
        max_steps=settings.max_steps,
        max_epochs=-1,
        logger=loggers,
        callbacks=callbacks,
        plugins=[io],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=settings.progress_bar,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=folder.path,
    )


def precision(choice: str, full_on_gpu: bool) -> Any:
    """auto: float32 masters with bf16 products for full fine-tuning on a GPU; else the weights' own dtype."""
    if choice != "auto":
        return choice
    return "bf16-mixed" if full_on_gpu else "32-true"


def sharded_strategy(chosen: Any, full: bool) -> ShardedStrategy:
    """FSDP2; bf16-mixed is its own affair there: bf16 weights gathered for bf16 products, float32 masters.

    Raises:
        UserError: for a precision that would be silently left out.
    """
    if chosen == "bf16-mixed" and not full:
        raise UserError(
            "trainer.precision=bf16-mixed: with LoRA and trainer.strategy=fsdp weights compute in their own dtype;"
            " expected auto (and model.dtype for the base)"
        )
    return ShardedStrategy(torch.bfloat16 if chosen == "bf16-mixed" else None)


def quiet() -> None:
    """Silence what third parties print at every start and a user can do nothing about."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.accelerators.cuda").setLevel(logging.WARNING)
    # The policy stays in eval mode: dropout would make training's log-probs differ from the sampler's.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # FSDP2 on the policy's outputs; nothing writes to them in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    warnings.filterwarnings("ignore", message=".*does not have a .*len.*")
