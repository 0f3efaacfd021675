"""The shape of the code where import-linter cannot see it: what an interpreter loads, short files, no pickle."""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("training", "service") for path in (ROOT / package).rglob("*.py"))
WITH_TORCH = (
    "service.bench.*",
    *("service.engine.backends.*", "service.engine.engine", "service.engine.loading"),
    *("service.engine.kernels.arena", "service.engine.kernels.weights"),
    *("training.calibration", "training.checkpoint", "training.data.batches", "training.data_loader"),
    *("training.distributed", "training.evaluate", "training.evaluator", "training.exchange.gguf_file"),
    *("training.exchange.hugging_face", "training.gradients", "training.memory", "training.models.*"),
    *("training.muon", "training.objectives", "training.optim", "training.resume", "training.sample"),
    *("training.speed", "training.stopping", "training.trainer"),
)
"""Who may load torch; every module that is new must do without, or be listed."""
MAX_LINES = 320
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.save", "torch.load"}
LOAD_IN_TURN = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{name} loads torch")
"""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_torch_is_loaded_only_where_it_is_listed():
    names = [module_name(path) for path in SOURCES]
    without = [name for name in names if not any(fnmatch(name, pattern) for pattern in WITH_TORCH)]
    for needed in ("service.__main__", "service.gateway.app", "service.queue.local.worker", "service.engine.scheduler"):
        assert needed in without
    command = [sys.executable, "-c", LOAD_IN_TURN, *without]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_nothing_is_listed_that_is_not_there():
    names = [module_name(path) for path in SOURCES]
    assert [pattern for pattern in WITH_TORCH if not any(fnmatch(name, pattern) for name in names)] == []


def test_files_stay_short():
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_nothing_is_pickled():
    used = {relative(path): names_of(ast.parse(path.read_text("utf-8"))) for path in SOURCES}
    assert {path: unsafe for path, names in used.items() if (unsafe := names & (UNSAFE_MODULES | UNSAFE_CALLS))} == {}


def names_of(tree: ast.AST) -> set[str]:
    return {name for node in ast.walk(tree) for name in names_in(node)}


def names_in(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name.partition(".")[0] for alias in node.names]
        case ast.ImportFrom(module=str(module)):
            return [module.partition(".")[0], *(f"{module}.{alias.name}" for alias in node.names)]
        case ast.Attribute():
            return [ast.unparse(node)]
    return []
