"""Lightning callbacks: one file a subject."""

from src.training.callbacks.checkpoints import ResumableCheckpoint
from src.training.callbacks.graceful import GracefulStop, StopRequested
from src.training.callbacks.loaded import CheckLoaded
from src.training.callbacks.logs import StepLogs
from src.training.callbacks.progress import StepProgress
from src.training.callbacks.report import RunReport
from src.training.callbacks.reward_watch import RewardWatch
from src.training.callbacks.sheets import ValidationSheets
from src.training.callbacks.validation import BestByValidation

__all__ = [
    "BestByValidation",
    "CheckLoaded",
    "GracefulStop",
    "ResumableCheckpoint",
    "RewardWatch",
    "RunReport",
    "StepLogs",
    "StepProgress",
    "StopRequested",
    "ValidationSheets",
]
