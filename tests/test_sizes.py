"""A house that one finds one's way in: short modules, short functions, one name for one thing."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.support import ROOT

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
"""Of the body: a command's signature is as long as its options are."""

MODULES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "registry").rglob("*.py")
}
TREES = {name: ast.parse(text) for name, text in MODULES.items()}


def test_a_module_can_be_read_at_once() -> None:
    lines = {name: len(text.splitlines()) for name, text in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MODULE_LINES_MAX} == {}


def test_a_function_fits_on_a_screen() -> None:
    long = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long[f"{name}: {node.name}"] = lines
    assert long == {}


def test_no_class_has_the_name_of_another() -> None:
    homes = defaultdict(list)
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(name)
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
