"""The house keeps its rooms: who may import what, who may print."""

import ast
import subprocess
import sys
from pathlib import Path

from learning import small_open_clip

from urbancross import cli

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "urbancross").rglob("*.py"))
MAY_PRINT = {
    ROOT / "urbancross" / file
    for file in (
        "cli.py",
        "command_line.py",
        "demo.py",
        "search.py",
        "explain.py",
        "export.py",
        "distributed/auditing.py",
        "distributed/doctor.py",
        "distributed/planning.py",
        "distributed/verifying.py",
        "progress.py",
        "report/gather.py",
        "report/gallery.py",
        "serve/running.py",
        "distributed/evaluation.py",
    )
}


def modules(file: Path) -> set[str]:
    """All modules that a file imports, wherever in it, `a.b` for `from a import b` too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def imports(file: Path) -> set[str]:
    """Top-level packages of them."""
    return {module.split(".")[0] for module in modules(file)}


def test_everything_outside_distributed_loads_without_ray():
    files = [file.relative_to(ROOT) for file in FILES if "distributed" not in file.parts]
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"ray", "vllm", "jobs", "tuning"} & set(loaded.stdout.split())


def test_workers_of_stages_without_a_network_start_without_torch():
    names = [f"urbancross.distributed.{name}" for name in ("ingest", "geotagging", "captioning", "segmentation")]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "torch" not in loaded.stdout.split()


def test_embed_finds_out_what_a_model_is_without_torch_and_embeds_tiles_without_open_clip(tmp_path: Path):
    folder = small_open_clip(tmp_path / "small")
    weights = folder / "open_clip_model.safetensors"
    code = f"""
import sys
from urbancross.config import EmbedConfig
from urbancross.distributed import embedding
from urbancross.models import names
model = names.resolve("local-dir:{folder}")
assert names.vector_width(model) == 24
assert names.vector_width(names.resolve("ViT-S-32-alt/{weights}")) == 256
print(*sys.modules, end=";")
embedding.TileEmbedder(model, "cpu")
print(*sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    of_driver, of_worker = (loaded.split() for loaded in told.split(";"))
    assert not {"torch", "open_clip", "transformers", "timm"} & set(of_driver)
    assert "torch" in of_worker
    assert not {"open_clip", "transformers", "timm"} & set(of_worker)


def test_only_the_ring_names_ray():
    assert {file.name for file in FILES if "ray" in imports(file)} == {
        file.name for file in FILES if "distributed" in file.parts and "ray" in imports(file)
    }


def test_every_verb_has_its_page_and_every_page_its_verb():
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} == set(cli.VERBS)


def test_the_library_does_not_print():
    for file in FILES:
        if file not in MAY_PRINT:
            calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
            assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], file


def test_no_file_grows_past_what_a_person_reads_at_once():
    assert {
        str(file): len(file.read_text().splitlines()) for file in FILES if len(file.read_text().splitlines()) > 450
    } == {}


def test_only_storage_reaches_for_the_network_and_credentials():
    for file in FILES:
        if file != ROOT / "urbancross" / "stores" / "s3.py":
            assert "boto3" not in imports(file), file
            assert "pyarrow.fs" not in modules(file), file


def test_the_library_imports_neither_jobs_nor_tuning():
    for file in [*FILES, *(ROOT / "jobs").glob("*.py")]:
        assert not {"tuning", "jobs"} & imports(file), file


def test_every_verb_leads_to_a_function_of_the_house():
    for verb in cli.VERBS.values():
        module, function = verb.run.split(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, verb.run
