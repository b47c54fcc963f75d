"""The house keeps its rooms: who may import what, who may print."""

import ast
import subprocess
import sys
from pathlib import Path

from urbancross import cli

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "urbancross").rglob("*.py"))
MAY_PRINT = {"cli.py", "config.py", "demo.py", "search.py", "progress.py", "gather.py", "evaluation.py"}


def imports(file: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_everything_outside_distributed_loads_without_ray():
    files = [file.relative_to(ROOT) for file in FILES if "distributed" not in file.parts]
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"ray", "vllm", "jobs", "tuning"} & set(loaded.stdout.split())


def test_only_the_ring_names_ray():
    assert {file.name for file in FILES if "ray" in imports(file)} == {
        file.name for file in FILES if "distributed" in file.parts and "ray" in imports(file)
    }


def test_every_verb_has_its_page_and_every_page_its_verb():
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} == set(cli.VERBS)


def test_the_library_does_not_print():
    for file in FILES:
        if file.name not in MAY_PRINT:
            calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
            assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], file


def test_no_file_grows_past_what_a_person_reads_at_once():
    assert {
        str(file): len(file.read_text().splitlines()) for file in FILES if len(file.read_text().splitlines()) > 450
    } == {}
