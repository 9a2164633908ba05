"""Mends two clashes between third-party packages, each only at the moment it would happen.

1. **torchvision beside a CPU torch.** The torchvision wheel of the public index is linked to CUDA. Beside
   a CPU build of torch its C++ extension cannot be loaded, and the import of torchvision, and with it of
   timm, lightning, torchmetrics and peft, dies with "operator torchvision::nms does not exist". Once
   torchvision has tried its extension, the missing operators are declared here, without an
   implementation: the import goes on, a call of them still fails. Box NMS is therefore done in torch.
2. **`kernels` is also a Hugging Face package** that transformers probes for. In a process that imports
   `src`, `kernels` is always this checkout's, whatever else is installed and from whatever directory the
   process was started; transformers is told that its optional package is absent (else
   ``from kernels import CUDAProperties`` fails inside it).

Both are import hooks, so that importing `src` costs nothing: neither torch nor transformers is imported
here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "__init__.py"

# The operators torchvision registers fake kernels for without asking whether they exist.
_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_TORCHVISION_OPS = ("nms", "qnms")


def declare_missing_torchvision_ops(_: ModuleType | None = None) -> tuple[str, ...]:
    """Declare the operators that torchvision's extension did not bring; returns their names."""
    import torch

    missing = tuple(name for name in _TORCHVISION_OPS if not hasattr(torch.ops.torchvision, name))
    for name in missing:
        torch.library.define(f"torchvision::{name}", _NMS_SCHEMA)
    return missing


def hide_hub_kernels(import_utils: ModuleType) -> None:
    """Make transformers' own probe answer that the Hugging Face `kernels` package is absent."""

    def is_kernels_available(*_: object, **__: object) -> bool:
        return False

    import_utils.is_kernels_available = is_kernels_available  # type: ignore[attr-defined]


class ImportHooks:
    """A meta-path finder: pins `kernels` to this checkout and runs a mend right after a module's import."""

    after: dict[str, Callable[[ModuleType], object]] = {  # noqa: RUF012 (read only)
        "torchvision.extension": declare_missing_torchvision_ops,
        "transformers.utils.import_utils": hide_hub_kernels,
    }

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a hooked module; None, "ask the next finder", for all others."""
        if name == "kernels" and KERNELS.is_file():
            return spec_from_file_location(name, KERNELS, submodule_search_locations=[str(KERNELS.parent)])
        if name in self.after:
            return _with_mend(self._found_by_others(name, path, target), self.after[name])
        return None

    def _found_by_others(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                return spec
        return None


def _with_mend(spec: ModuleSpec | None, mend: Callable[[ModuleType], object]) -> ModuleSpec | None:
    """`spec` whose loader runs `mend(module)` once the module's code has run."""
    if spec is None or spec.loader is None:
        return spec
    execute = spec.loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        mend(module)

    spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


def _refuse_foreign_kernels() -> None:
    """Raise ImportError where another `kernels` was imported before this project could pin its own."""
    foreign = sys.modules.get("kernels")
    if foreign is None or not KERNELS.is_file():
        return
    origin = getattr(foreign, "__file__", None)
    if origin is None or Path(origin).resolve() != KERNELS:
        raise ImportError(
            f"`kernels` was already imported from {origin}, but this project needs {KERNELS}."
            " Import `src` before transformers (or whatever else imports that package).",
            name="kernels",
        )


def install() -> None:
    """Put the import hooks in front, once per process; modules imported earlier are mended at once."""
    _refuse_foreign_kernels()
    if any(isinstance(finder, ImportHooks) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, ImportHooks())
    # transformers imported before us: its probe, and the name its utils package took from there.
    for name in ("transformers.utils.import_utils", "transformers.utils"):
        if (probe := sys.modules.get(name)) is not None:
            hide_hub_kernels(probe)
