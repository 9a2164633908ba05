"""Processes started by torchrun, SLURM or Lightning, and what they must agree on before they connect."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from src.config.errors import UserError

# How long a process waits for the first one's word.
PATIENCE = timedelta(seconds=120)
_WORD = "BICOT_FIRST_"


def several() -> bool:
    """Whether torchrun or srun started this process as one of several."""
    return _by_torchrun() or _by_slurm()


def is_first() -> bool:
    """Whether this process is the run's first one, which owns its folder; known before there is a process group."""
    if _by_torchrun():
        return os.environ.get("RANK", "0") == "0"
    if _by_slurm():
        return os.environ["SLURM_PROCID"] == "0"
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def job_name() -> str | None:
    """What all processes that srun started know and no other run has: job, step, and how often it was requeued."""
    if not _by_slurm() or _by_torchrun():
        return None
    name = f"job{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
    again = os.environ.get("SLURM_RESTART_COUNT", "0")
    return name if again == "0" else f"{name}.{again}"


def tell(key: str, word: str) -> None:
    """Send the other processes of this run a short text, which they read with `told`. Only the first one calls this.

    torchrun: through the store its agents already share. Processes that Lightning starts later inherit it.

    Raises:
        UserError: where torchrun's processes share no store.
    """
    os.environ[_WORD + key] = word
    if _by_torchrun():
        store, name = _store(key)
        store.set(name, word)


def told(key: str) -> str | None:
    """The first process's text for `key`; None where it has no way to tell (SLURM, nodes started by hand).

    Raises:
        UserError: where torchrun's processes share no store.
    """
    if _by_torchrun():
        store, name = _store(key)
        return str(store.get(name).decode())
    return os.environ.get(_WORD + key)


def can_tell() -> bool:
    """Whether `tell` reaches all processes there are."""
    if _by_torchrun():
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return not _by_slurm()


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _by_slurm() -> bool:
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def _store(key: str) -> tuple[Any, str]:
    if not can_tell():
        raise UserError(
            "run.dir: required here, since the processes started by torchrun share no store to agree on one"
        )
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=PATIENCE)
    # A worker group that torchrun starts again agrees anew.
    return store, f"bicot/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{key}"


def job_number() -> int | None:
    """The number of this job inside its sweep; None outside of one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return int(HydraConfig.get().job.num)
