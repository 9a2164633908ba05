"""What no file of src/, kernels/ and experiments/ does: run code that a file or a text brings along."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = [file for folder in ("src", "kernels", "experiments") for file in sorted((ROOT / folder).rglob("*.py"))]
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.load", "marshal.loads"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "shelve.open", "numpy.load", "np.load"),
    *("joblib.load", "torch.hub.load", "torch.jit.load", "hydra.utils.get_object", "get_object", "get_method"),
    *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_class", "hydra.utils.get_method"),
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# An exception class, to tell a damaged file by.
HARMLESS = {("pickle", "UnpicklingError")}
# Hydra's way to call what a config names, with whatever stands inside; ours is src.config.allowed_targets.
HYDRAS_CALLS = {"instantiate", "get_object", "get_class", "get_method"}
# Where a name becomes a module: of a factory that was checked, of a variant or job out of a list, of a patch.
IMPORTS_BY_NAME = {
    "src/config/allowed_targets.py",
    "src/config/factories.py",
    "src/algorithms/algorithm.py",
    "src/cli/sweep.py",
}


def dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def literal(call: ast.Call, name: str) -> object:
    """The constant given for a keyword; Ellipsis where it is not given or is no constant."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
    return ...


def faults(source: str, name: str = "src/x.py") -> Iterator[str]:
    """Everything in a source text that this test forbids, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = (node.module if isinstance(node, ast.ImportFrom) else None) or ""
            for alias in node.names:
                root = (module or alias.name).partition(".")[0]
                if root in FORBIDDEN_MODULES and (module, alias.name) not in HARMLESS:
                    yield f"{name}:{node.lineno}: imports {root}"
                if alias.name in HYDRAS_CALLS:
                    yield f"{name}:{node.lineno}: imports {alias.name}"
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if called.endswith("import_module") and name not in IMPORTS_BY_NAME:
            yield f"{name}:{node.lineno}: {called}()"
        if called in FORBIDDEN_CALLS or called.partition(".")[0] in FORBIDDEN_MODULES:
            yield f"{name}:{node.lineno}: {called}()"
        if called == "torch.load" and literal(node, "weights_only") is not True:
            yield f"{name}:{node.lineno}: torch.load() without weights_only=True"
        saves = called.endswith(".save_checkpoint")  # Lightning's word there for: without the optimiser
        if (literal(node, "weights_only") is False and not saves) or literal(node, "allow_pickle") is True:
            yield f"{name}:{node.lineno}: {called}() unpickles"
        if literal(node, "shell") is True:
            yield f"{name}:{node.lineno}: {called}() in a shell"
        trusted = [keyword for keyword in node.keywords if keyword.arg == "trust_remote_code"]
        if trusted and literal(node, "trust_remote_code") is not False:
            yield f"{name}:{node.lineno}: {called}() may trust remote code"
        part = called.split(".")
        if part[-1] == "from_pretrained" and part[0].startswith("Auto") and not trusted:
            yield f"{name}:{node.lineno}: {called}() without trust_remote_code=False asks the user"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_runs_what_data_brings(file: Path) -> None:
    assert list(faults(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))) == []


def test_every_source_is_looked_at() -> None:
    assert len(SOURCES) > 200


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(open('x').read())",
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=flag)",
        "trainer.fit(m, weights_only=False)",
        "yaml.load(t)",
        "yaml.unsafe_load(t)",
        "np.load(p)",
        "subprocess.run(t, shell=True)",
        "M.from_pretrained(p, trust_remote_code=True)",
        "M.from_pretrained(p, trust_remote_code=flag)",
        "AutoModel.from_pretrained(p)",
        "from hydra.utils import instantiate",
        "def f():\n    if x:\n        return __import__(name)",
    ],
)
def test_each_fault_is_seen(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile('x')",
        "torch.compile(f)",
        "from pickle import UnpicklingError",
        "torch.load(p, weights_only=True)",
        "trainer.save_checkpoint(p, weights_only=False)",
        "yaml.safe_load(t)",
        "ast.literal_eval(t)",
        "AutoModel.from_pretrained(p, trust_remote_code=False)",
    ],
)
def test_the_harmless_is_let_through(source: str) -> None:
    assert list(faults(source)) == []
