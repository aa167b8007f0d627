"""Imports within the package only go up the list of layers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first; a module may import from its own layer and from those before it.
LAYERS = [
    {"version", "errors", "files", "names"},
    {"seeding"},
    {"solvers"},
    {"implicit"},
    {"models"},
    {"reuse"},
    {"monotone"},
    {"checkpoints"},
    {"uncertainty"},
    {"statistics"},
    {"metrics"},
    {"runs"},
    {"report"},
    {"smoothing", "deterministic"},
    {"attacks"},
    {"data"},
    {"training"},
    {"interchange"},
    {"lightning"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHOUT_TORCH = {"runs", "version", "errors", "files", "statistics", "metrics", "report"}
WITH_TORCH = {"metrics.certified"}  # within these
MODULES = sorted(path for path in (ROOT / "deqcert").rglob("*.py") if path != ROOT / "deqcert" / "__init__.py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_up(path: Path) -> None:
    relative = path.relative_to(ROOT / "deqcert").with_suffix("")
    own = relative.parts[0]
    assert own in LEVEL, f"{own} is in no layer"
    without_torch = own in WITHOUT_TORCH and ".".join(relative.parts[:2]) not in WITH_TORCH
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "deqcert" and len(parts) > 1:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{path} imports {name} from a higher layer"
            if without_torch:
                assert parts[1] in WITHOUT_TORCH
                assert ".".join(parts[1:3]) not in WITH_TORCH
        if without_torch:
            assert parts[0] not in {"torch", "torchvision", "torchmetrics", "lightning"}
        if own in {"solvers", "implicit", "models", "checkpoints", "uncertainty", "smoothing", "attacks"}:
            assert parts[0] != "lightning"
