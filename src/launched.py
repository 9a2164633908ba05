"""Processes that somebody else started (torchrun, SLURM), and what they must agree on before they meet."""

from __future__ import annotations

import os
from datetime import timedelta

from src.config import UserError

# How long a process waits for the first one's word.
PATIENCE = timedelta(seconds=120)


def several() -> bool:
    """Whether torchrun or srun started this process as one of several."""
    return _by_torchrun() or (int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ)


def agreed(key: str, mine: str) -> str:
    """The first process's value of `key`, a short text; `mine` where this process is alone.

    torchrun: through the store its agents already share. SLURM: the number of the job, and of the step in it, which
    all processes know.

    Raises:
        UserError: where there is no such store; the user then has to name the folder.
    """
    if _by_torchrun():
        return _through_store(key, mine)
    if several():
        return f"job{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
    return mine


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _through_store(key: str, mine: str) -> str:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise UserError("run.dir: needed here, the processes that torchrun started share no store to agree on one")
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=PATIENCE)
    # A worker group that torchrun starts again agrees anew.
    name = f"bicot/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{key}"
    if int(os.environ["RANK"]) == 0:
        store.set(name, mine)
    return str(store.get(name).decode())
