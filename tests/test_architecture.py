"""Rules about the code that a machine can check: stages, commands, params.yaml, dvc.yaml and imports agree."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from factories import PROJECT

from pipeline.promote import MEASURING_CODE
from pipeline.runtime.fingerprint import stage_code
from pipeline.validate import check

STAGES: dict[str, Any] = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
TOOLS = (
    "approve",
    "rollback",
    "tune",
    "preview",
    "apply_recipe",
    "validate",
    "summary",
    "data",
    "doctor",
    "results",
    "collect",
    "plan",
    "restore_many",
)
# Code that decides where and how a stage runs, not what it writes; training and resuming are tested to show that.
NO_DEPENDENCY = {"pipeline/cluster", "pipeline/tracking", "pipeline/runtime"}
# load_model asks the hub, which needs the console, for models from elsewhere; no stage but promote does, and lists it.
NOT_REACHED = {"dgunet/hub", "dgunet/console.py"}
PACKAGES = sorted(path.parent.name for path in (PROJECT / "pipeline").glob("*/__init__.py"))


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("dgunet", "pipeline", include_external_packages=True, cache_dir=None)


def stage(name: str) -> dict[str, Any]:
    body: dict[str, Any] = STAGES[name]
    return body.get("do", body)


def path_of(module: str) -> str:
    path = Path(*module.split("."))
    return (path / "__init__.py" if (PROJECT / path).is_dir() else path.with_suffix(".py")).as_posix()


def own_modules(graph: grimp.ImportGraph, module: str) -> set[str]:
    """The modules of the project that `module` imports, directly or not, and itself."""
    found = {module} | graph.find_upstream_modules(module)
    return {name for name in found if name.partition(".")[0] in ("dgunet", "pipeline") and "." in name}


def is_listed(path: str, listed: list[str] | set[str]) -> bool:
    return any(path == entry or path.startswith(f"{entry}/") for entry in listed)


def test_a_stage_has_the_name_of_its_command() -> None:
    for name in STAGES:
        commands = stage(name)["cmd"]
        last = commands if isinstance(commands, str) else commands[-1]
        assert last.startswith(f"infra/python -m pipeline.{name} ")


def test_files_of_pipeline_are_commands_and_folders_are_libraries() -> None:
    files = {path.stem for path in (PROJECT / "pipeline").glob("*.py")} - {"__init__"}
    assert files == {*STAGES, *TOOLS}
    for name in files:
        tree = ast.parse((PROJECT / "pipeline" / f"{name}.py").read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body), name
        assert isinstance(tree.body[-1], ast.If), f"{name}.py must run main() as a script"


@pytest.mark.parametrize("name", [name for name in STAGES if name != "prepare"])  # prepare runs always
def test_the_code_that_a_stage_imports_is_listed_by_folder_in_dvc_yaml(graph: grimp.ImportGraph, name: str) -> None:
    listed = stage_code(name)
    imported = {path_of(module) for module in own_modules(graph, f"pipeline.{name}")}
    missing = sorted(path for path in imported if not is_listed(path, {*listed, *NO_DEPENDENCY, *NOT_REACHED}))
    assert not missing, f"dvc.yaml must list for {name}: {missing}"
    unused = [entry for entry in listed if not any(is_listed(path, [entry]) for path in imported)]
    assert not unused, f"{name} imports nothing of: {unused}"


def test_synthesis_does_not_depend_on_training() -> None:
    assert not {"pipeline/training", "pipeline/dataloader", "dgunet/network"} & set(stage_code("synthesize"))


def test_code_that_does_not_decide_results_is_no_dependency() -> None:
    for name in STAGES:
        expected = {"pipeline/tracking"} if name == "promote" else set()  # there the registry is the result
        assert NO_DEPENDENCY & set(stage_code(name)) == expected


def test_all_code_that_decides_a_psnr_counts_as_measuring_code(graph: grimp.ImportGraph) -> None:
    imported = {path_of(module) for module in own_modules(graph, "pipeline.evaluation.scores")}
    elsewhere = {"pipeline/config", "pipeline/runtime", "pipeline/sources"}  # read values and files, measure nothing
    assert not [path for path in imported if not is_listed(path, {*MEASURING_CODE, *elsewhere})]


EDITED = {  # an edit of one file of each package -> the stages of a task that are out of date then
    "pipeline/cluster/channel.py": set(),
    "pipeline/config/params.py": {"synthesize", "train", "evaluate", "promote"},
    "pipeline/dataloader/loader.py": {"train", "evaluate", "promote"},
    "pipeline/degradations/rain.py": {"synthesize", "train", "evaluate", "promote"},
    "pipeline/evaluation/protocol.py": {"evaluate", "promote"},
    "pipeline/preparation/splits.py": set(),
    "pipeline/reporting/gallery.html": {"evaluate"},
    "pipeline/restoration/blocks.py": set(),
    "pipeline/retention/items.py": set(),
    "pipeline/runtime/entry_point.py": set(),
    "pipeline/shards/format.py": {"synthesize", "train", "evaluate", "promote"},
    "pipeline/sources/listing.py": {"synthesize", "evaluate"},
    "pipeline/synthesis/tiles.py": {"synthesize"},
    "pipeline/tracking/registry.py": {"promote"},
    "pipeline/training/settings.py": {"train"},
    "pipeline/tuning/search.py": set(),
    "pipeline/train.py": {"train"},
    "dgunet/images/files.py": {"synthesize", "train", "evaluate", "promote"},
    "dgunet/network/unfolding.py": {"train", "evaluate", "promote"},
    "dgunet/__main__.py": {"evaluate", "promote"},
}


def test_an_edit_in_each_package_is_tried() -> None:
    assert {Path(path).parent.name for path in EDITED} >= set(PACKAGES)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose dvc.lock says that everything was built; the outputs are files without content."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("dgunet", "pipeline"):
        shutil.copytree(PROJECT / name, folder / name)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(PROJECT / name, folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump({**params, "tasks": ["denoise"]}, allow_unicode=True))
    dvc(folder, "init", "--no-scm", "--quiet")
    for name in STAGES:
        for out in [out for kind in ("outs", "metrics", "plots") for out in stage(name).get(kind, ())]:
            path = folder / (out if isinstance(out, str) else next(iter(out))).replace("${item}", "denoise")
            if path.suffix:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            else:
                path.mkdir(parents=True)
                (path / "file").touch()
    dvc(folder, "commit", "--force", "--quiet")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("edited", list(EDITED))
def test_an_edit_makes_the_stages_stale_that_depend_on_it(built: Path, edited: str) -> None:
    from dvc.repo import Repo  # takes a second to import

    content = (built / edited).read_bytes()
    try:
        (built / edited).write_bytes(content + b"\n")
        (built / edited).parent.joinpath("__pycache__").mkdir(exist_ok=True)
        (built / edited).parent.joinpath("__pycache__", "new.pyc").write_bytes(b"x")
        with Repo(str(built)) as repo:
            status = repo.status()
    finally:
        (built / edited).write_bytes(content)
    # A stage that follows a stale one is built anew only if the outputs of that one change.
    stages = {name.rpartition(":")[2].partition("@")[0]: str(why) for name, why in status.items()}
    stale = {name for name, why in stages.items() if "changed deps" in why}
    assert stale == EDITED[edited]
    assert stages.keys() - stale == {"prepare"}  # it runs always


def test_params_yaml_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    check()


@pytest.mark.parametrize(
    ("system", "packages"),
    [
        ("ray", {"pipeline.cluster", "pipeline.tuning"}),
        ("webdataset", {"pipeline.shards"}),
        ("mlflow", {"pipeline.tracking", "pipeline.retention", "dgunet.hub"}),
        ("huggingface_hub", {"dgunet.hub"}),
        ("dvc", {"pipeline.retention", "pipeline.results"}),
    ],
)
def test_a_foreign_system_is_known_by_its_packages_alone(
    graph: grimp.ImportGraph, system: str, packages: set[str]
) -> None:
    known = graph.find_modules_that_directly_import(system) if system in graph.modules else set()
    assert {".".join(name.split(".")[:2]) for name in known} == packages


def test_internals_of_ray_are_used_in_one_file() -> None:
    used = [
        path.name
        for path in sorted((PROJECT / "pipeline").rglob("*.py"))
        if any(name in path.read_text() for name in ("._internal", "_local_tuner", "ray._private"))
    ]
    assert used == ["ray_internals.py"]


def test_no_file_has_a_name_that_says_nothing() -> None:
    nameless = {"utils", "common", "helpers", "base", "core"}
    assert not [path for path in PROJECT.glob("[dp]*/**/*.py") if path.stem in nameless]


def test_images_are_read_without_torch_and_restore_is_a_function() -> None:
    code = (
        "import sys, dgunet.images; assert 'torch' not in sys.modules\n"
        "import dgunet.inference, dgunet; assert callable(dgunet.restore), dgunet.restore"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
