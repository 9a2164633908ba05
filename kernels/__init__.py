"""Per-token statistics of very long token sequences, sampling them, and the small operations of a decode step.

The operations stand beside their plain-torch reference, which is the oracle of the tests, the fallback on
a CPU and the baseline of the benchmark. Triton is imported only where it is going to be used.

``__version__`` is here because ``kernels`` is also the name of a Hugging Face package, whose version other
libraries look up when they find an importable module of that name; 0.0.0 reads as "too old to use". For
the same reason nothing in this package imports transformers.
"""

__version__ = "0.0.0"

from kernels.backend import BACKENDS, BackendUnavailable, DecodeOperations, Operations, operations, resolve
from kernels.head import guide, guide_features
from kernels.kl import ESTIMATORS, KL_NAMES, KlName, kl_estimate
from kernels.objective import SURROGATES, Objective
from kernels.one_pass import OnePass, one_pass_head
from kernels.reference import TokenStatistics, head_statistics, token_statistics
from kernels.sampling import Draws, sample_tokens

__all__ = [
    "BACKENDS",
    "ESTIMATORS",
    "KL_NAMES",
    "SURROGATES",
    "BackendUnavailable",
    "DecodeOperations",
    "Draws",
    "KlName",
    "Objective",
    "OnePass",
    "Operations",
    "TokenStatistics",
    "guide",
    "guide_features",
    "head_statistics",
    "kl_estimate",
    "one_pass_head",
    "operations",
    "resolve",
    "sample_tokens",
    "token_statistics",
]
