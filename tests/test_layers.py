"""Imports run one way: each folder and file at the top of the package has a floor and imports from lower ones only."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssl_equi"
ROOT = PACKAGE.parent

FLOOR = {
    "errors": 0,
    "files": 1,
    "options": 1,
    "runtime": 1,
    "checkpoint": 2,
    "geometry": 2,
    "latents": 3,
    "encoders": 4,
    "scenes": 4,
    "data": 5,
    "objectives": 5,
    "views": 6,
    "export": 6,
    "evaluation": 7,
    "training": 8,
    "cli": 9,
    "shell": 10,
    "__main__": 11,
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def floor_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_come_from_lower_floors_only() -> None:
    for path in modules():
        if path == PACKAGE / "__init__.py":
            continue
        own = floor_name(path)
        assert own in FLOOR, f"give ssl_equi/{own} a floor"
        for name in imported_names(path):
            parts = name.split(".")
            if parts[0] in ("recipes", "evaluation", "tools", "datasets", "tests"):
                pytest.fail(f"{path} imports {name}: scripts import the library, never the reverse")
            if parts[0] == "ssl_equi" and len(parts) > 1 and parts[1] != own:
                assert FLOOR[parts[1]] < FLOOR[own], f"{path} imports {name}, which isn't on a lower floor"


def test_the_top_of_the_package_holds_six_files_and_the_command() -> None:
    assert len({path.name for path in PACKAGE.glob("*.py")} - {"__main__.py"}) <= 6


def test_the_package_itself_imports_what_it_offers() -> None:
    assert imported_names(PACKAGE / "__init__.py") <= {
        "typing", "typing.TYPE_CHECKING", "typing.Any", "ssl_equi.encoders", "ssl_equi.encoders.create_encoder",
        "ssl_equi.export.encoder", "ssl_equi.export.encoder.load_encoder",
    }  # fmt: skip


def test_tensor_code_knows_no_files_and_no_accelerate() -> None:
    forbidden = {"accelerate", "pathlib", "os", "shutil", "webdataset", "ssl_equi.data", "ssl_equi.training.run"}
    for folder in ("objectives", "encoders", "geometry", "latents", "scenes"):
        for path in (PACKAGE / folder).rglob("*.py"):
            roots = {name.split(".")[0] for name in imported_names(path)} | imported_names(path)
            assert not roots & forbidden, f"{path} imports {roots & forbidden}"


def test_only_the_run_and_its_processes_know_accelerate() -> None:
    users = [path.name for path in modules() if any(name.startswith("accelerate") for name in imported_names(path))]
    assert users == ["processes.py", "run.py"]


def test_a_library_stays_behind_its_border() -> None:
    borders = {
        "lightly": "parts/heads.py", "escnn": "escnn_import.py",
        "fsspec": "transport.py", "sklearn": "feature_map.py", "pyarrow": "posed/reading.py",
        "trimesh": "mesh_files.py", "huggingface_hub": "export/hub.py",
        **dict.fromkeys(("wandb", "tensorboard", "trackio", "mlflow"), "training/trackers.py"),
        **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx_files.py"),
    }  # fmt: skip
    for library, border in borders.items():
        users = [path for path in modules() if library in {name.split(".")[0] for name in imported_names(path)}]
        assert all(path.as_posix().endswith(f"/{border}") for path in users)


def test_nothing_unpickles() -> None:
    for path in modules():
        source = path.read_text()
        assert "pickle" not in {name.split(".")[0] for name in imported_names(path)}, path
        assert re.search(r"(?<!safetensors\.)torch\.load\(", source) is None, path
        assert "allow_pickle=True" not in source, path


def test_the_loop_of_a_recipe_can_be_read_at_a_glance() -> None:
    for path in sorted((ROOT / "recipes").glob("*.py")):
        functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        lines = [statement for statement in ast.walk(functions["main"]) if isinstance(statement, ast.stmt)]
        assert len(lines) - 1 <= 10, f"main of {path.name} has {len(lines) - 1} statements: leave Pretraining the rest"


def test_datasets_folder_is_not_a_package() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_every_dependency_of_the_package_is_declared() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    import_name = {
        "google-crc32c": "google_crc32c", "huggingface-hub": "huggingface_hub", "pillow": "PIL",
        "scikit-learn": "sklearn",
    }  # fmt: skip
    extras = project["optional-dependencies"]
    optional = [
        line
        for extra in ("steerable", "streaming", "maps", "tables", "meshes", "onnx", "trackers")
        for line in extras[extra]
    ]
    lines = [*project["dependencies"], *optional]
    declared = {import_name.get(name, name) for name in (line.split(">")[0] for line in lines)}
    used = {name.split(".")[0] for path in modules() for name in imported_names(path)}
    foreign = {name for name in used if name not in sys.stdlib_module_names and name != "ssl_equi"}
    assert foreign <= declared
