"""The package's one rule of direction; DESIGN of the rooms stands in docs/design.md."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "segmentation"
EXCEPTIONS = {  # re-exports; imported inside a method; the command line joins rooms as scripts do
    "__init__.py": {"evaluation"},
    "models/segformer.py": {"pretrained"},
    "arguments.py": {"data"},
}


def test_root_files_and_models_are_below_every_other_folder():
    """Root files import root files and models; a folder imports those and itself."""
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == {"models", "pretrained", "data", "training", "evaluation", "report"}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE)
        room = name.parts[0] if len(name.parts) > 1 else ""
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                depth = len(name.parts) - node.level  # of the package that the dots name
                target = [*name.parts[:depth], *(node.module or "").split(".")]
                imported.add(target[0])
        forbidden = (imported & folders) - {room, "models"} - EXCEPTIONS.get(name.as_posix(), set())
        assert not forbidden, f"{name} imports {forbidden}"
