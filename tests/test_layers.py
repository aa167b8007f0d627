"""Imports within the package only go up the list of layers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first; a module may import from its own layer and from those before it.
LAYERS = [
    {"version", "errors", "files"},
    {"seeding"},
    {"solvers"},
    {"implicit"},
    {"models"},
    {"attacks"},
    {"checkpoints"},
    {"data"},
    {"training"},
    {"statistics"},
    {"ledger"},
    {"smoothing"},
    {"metrics"},
    {"report"},
    {"certification"},
    {"interchange"},
    {"robustness"},
    {"callbacks"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHOUT_TORCH = {"ledger", "version", "errors", "files", "statistics", "report"}
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
    own = path.relative_to(ROOT / "deqcert").with_suffix("").parts[0]
    assert own in LEVEL, f"{own} is in no layer"
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "deqcert" and len(parts) > 1:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{path} imports {name} from a higher layer"
            if own in WITHOUT_TORCH:
                assert parts[1] in WITHOUT_TORCH
        if own in WITHOUT_TORCH:
            assert parts[0] not in {"torch", "torchvision", "torchmetrics", "lightning"}
        if own in {"solvers", "implicit", "models", "attacks", "checkpoints", "smoothing", "robustness"}:
            assert parts[0] != "lightning"
