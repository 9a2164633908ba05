"""The two clashes `src.cli.compat` mends, each provoked with stand-ins, so that the tests hold on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, RunPython

NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def torchvision_stand_in(directory: Path, extension: str) -> Path:
    """A torchvision that, like the real one, runs `extension` and then registers fake kernels for two operators."""
    package = directory / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from . import extension, _meta_registrations\n")
    (package / "extension.py").write_text(extension)
    (package / "_meta_registrations.py").write_text(
        "import torch\n"
        "@torch.library.register_fake('torchvision::nms')\n"
        "def nms(dets, scores, iou_threshold): return dets.new_empty(0)\n"
        "@torch.library.register_fake('torchvision::qnms')\n"
        "def qnms(dets, scores, iou_threshold): return dets.new_empty(0)\n"
    )
    return directory


NO_EXTENSION = "def _has_ops(): return False\n"
WITH_EXTENSION = (
    "import torch\n"
    f"torch.library.define('torchvision::nms', '{NMS}')\n"
    "torch.library.impl('torchvision::nms', 'cpu')(lambda dets, scores, iou_threshold: dets + 1)\n"
    f"torch.library.define('torchvision::qnms', '{NMS}')\n"
)
CALL = "import torch; x = torch.zeros(1, 4); print(torch.ops.torchvision.nms(x, x[:, 0], 0.5))"


def test_torchvision_without_its_extension_imports(run_python: RunPython, tmp_path: Path) -> None:
    path = [torchvision_stand_in(tmp_path, NO_EXTENSION), ROOT]
    unmended = run_python("import torchvision", path)
    assert "operator torchvision::nms does not exist" in unmended.stderr, "the clash itself"
    mended = run_python(f"import src, torchvision; print('imported'); {CALL}", path)
    assert mended.stdout == "imported\n"
    # Declared, not implemented: a made-up result would be worse than an error.
    assert "torchvision::nms" in mended.stderr
    assert "NotImplementedError" in mended.stderr


def test_operators_of_a_working_extension_are_left_alone(run_python: RunPython, tmp_path: Path) -> None:
    path = [torchvision_stand_in(tmp_path, WITH_EXTENSION), ROOT]
    assert run_python(f"import src, torchvision; {CALL}", path).stdout == "tensor([[1., 1., 1., 1.]])\n"


def test_the_installed_torchvision_imports(run_python: RunPython) -> None:
    done = run_python("import src, torchvision, torchmetrics.detection; print('ok')")
    assert done.stdout == "ok\n", done.stderr


def test_importing_src_stays_cheap(run_python: RunPython) -> None:
    done = run_python("import src, sys; print({'torch', 'transformers', 'numpy', 'lightning'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


@pytest.fixture
def hub_kernels(tmp_path: Path) -> Path:
    """A directory with an installed distribution `kernels` of a version transformers accepts, as pip leaves it."""
    site = tmp_path / "site"
    (site / "kernels").mkdir(parents=True)
    (site / "kernels" / "__init__.py").write_text("class CUDAProperties: pass\n")
    # The version the installed transformers would accept, whichever that is.
    from transformers.utils import import_utils

    version = import_utils.KERNELS_MIN_VERSION
    metadata = site / f"kernels-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text("kernels\n")
    return site


OURS = "import kernels; print(kernels.__file__)"
LLAMA = "from transformers import LlamaForCausalLM; print(LlamaForCausalLM.__name__)"
KERNELS_FILE = str(ROOT / "kernels" / "__init__.py")


def test_without_the_hub_package_transformers_imports_beside_ours(run_python: RunPython) -> None:
    done = run_python(f"import src; {OURS}; {LLAMA}")
    assert done.stdout.split() == [KERNELS_FILE, "LlamaForCausalLM"], done.stderr


def test_with_the_hub_package_too(run_python: RunPython, hub_kernels: Path) -> None:
    """Ours is found although the other stands first on the path, as in a process started from any directory."""
    clash = run_python(LLAMA, [ROOT, hub_kernels])
    assert "cannot import name 'CUDAProperties' from 'kernels'" in clash.stderr, "the clash itself"
    done = run_python(f"import src; {LLAMA}; {OURS}", [hub_kernels, ROOT])
    assert done.stdout.split() == ["LlamaForCausalLM", KERNELS_FILE], done.stderr


def test_transformers_imported_before_src_is_told_too(run_python: RunPython, hub_kernels: Path) -> None:
    done = run_python(f"import transformers.utils; import src; {LLAMA}; {OURS}", [hub_kernels, ROOT])
    assert done.stdout.split() == ["LlamaForCausalLM", KERNELS_FILE], done.stderr


def test_the_other_package_imported_first_is_refused_with_the_fix(run_python: RunPython, hub_kernels: Path) -> None:
    done = run_python("import kernels, src", [hub_kernels, ROOT])
    assert f"ImportError: `kernels` was already imported from {hub_kernels}" in done.stderr
    assert "Import `src` before transformers" in done.stderr
