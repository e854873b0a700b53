"""Imports go flows -> tasks -> models, never back, and the mathematics know nothing of the world."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "models": {"tasks", "flows", "prefect", "mlflow", "fsspec", "s3fs"},
    "tasks": {"flows"},
    "flows": set(),
}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_never_go_back(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    backward = {str(f.relative_to(ROOT)): found for f in files if (found := imported_packages(f) & FORBIDDEN[package])}
    assert backward == {}
