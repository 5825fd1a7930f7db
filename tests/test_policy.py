"""The rules of the house that a machine can check: imports by room, length of files, settings and
commands that exist.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from vjepa import config

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("vjepa/**/*.py"), *ROOT.glob("data_prep/**/*.py")])
GROUND = {
    "vjepa",
    "vjepa.records",
    "vjepa.errors",
    "vjepa.counter_rng",
    "vjepa.ranks",
    "vjepa.files",
    "vjepa.run_folder",
    "vjepa.page",
}
SETTINGS = GROUND | {"vjepa.config", "vjepa.device", "vjepa.schedules"}
PREP = SETTINGS | {"vjepa.command", "vjepa.data"}
NETWORKS = {"vjepa.masking", "vjepa.models", "vjepa.objectives"}
# What each room may import beside itself, from the ground up. Commands may import everything in vjepa.
ROOMS = {
    **dict.fromkeys(sorted(GROUND - {"vjepa"}), GROUND),
    "vjepa.config": GROUND,
    "vjepa.device": SETTINGS,
    "vjepa.schedules": SETTINGS,
    "vjepa.data": SETTINGS,
    "vjepa.masking": SETTINGS,
    "vjepa.models": SETTINGS,
    "vjepa.objectives": SETTINGS,
    "vjepa.jepa": SETTINGS | NETWORKS | {"vjepa.data"},
    "vjepa.finetuning": SETTINGS | {"vjepa.models", "vjepa.data"},
    "vjepa.world_model": SETTINGS | {"vjepa.models", "vjepa.objectives", "vjepa.data"},
    "vjepa.health": SETTINGS | {"vjepa.objectives"},
    "vjepa.interop": SETTINGS | {"vjepa.models", "vjepa.data", "vjepa.world_model"},
    "vjepa.probing": SETTINGS
    | {"vjepa.data", "vjepa.models", "vjepa.jepa", "vjepa.health", "vjepa.interop", "vjepa.command"},
    "vjepa.reporting": SETTINGS | {"vjepa.data", "vjepa.models", "vjepa.health", "vjepa.interop", "vjepa.probing"},
    "vjepa.training": SETTINGS
    | NETWORKS
    | {
        "vjepa.data",
        "vjepa.jepa",
        "vjepa.finetuning",
        "vjepa.world_model",
        "vjepa.health",
        "vjepa.interop",
        "vjepa.probing",
        "vjepa.reporting",
        "vjepa.command",
        "data_prep.first_run",
    },
    "vjepa.tuning": SETTINGS
    | {"vjepa.data", "vjepa.models", "vjepa.health", "vjepa.probing", "vjepa.reporting", "vjepa.training"},
    # its rooms are those whose films the first run draws
    "vjepa.planning": SETTINGS
    | {"vjepa.data", "vjepa.models", "vjepa.world_model", "vjepa.interop", "vjepa.probing", "vjepa.reporting"}
    | {"vjepa.command", "data_prep.first_run"},
    # videos that nobody has indexed are scanned by what makes indexes
    "vjepa.predicting": SETTINGS
    | {"vjepa.command", "vjepa.data", "vjepa.interop", "vjepa.probing", "vjepa.reporting"}
    | {"data_prep.listing", "data_prep.scanning"},
    "data_prep": PREP
    | {f"data_prep.{room}" for room in ("listing", "scanning", "copying", "looking")}
    | {"data_prep.child", "data_prep.engines", "data_prep.rows", "data_prep.arguments"},
    "data_prep.child": PREP,
    "data_prep.engines": PREP | {"data_prep.child"},
    "data_prep.rows": PREP,
    "data_prep.arguments": PREP | {"data_prep.engines", "data_prep.listing"},
    "data_prep.listing": PREP,
    "data_prep.scanning": PREP | {"data_prep.child", "data_prep.engines", "data_prep.listing"},
    "data_prep.copying": PREP
    | {"data_prep.child", "data_prep.engines", "data_prep.rows", "data_prep.listing", "data_prep.scanning"},
    "data_prep.looking": PREP | {"data_prep.child", "data_prep.rows"},
    "data_prep.first_run": PREP | {"data_prep.scanning"},
}
ONLY_IN = {"decord": {"vjepa.data"}, "timm": {"vjepa.models"}}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(module: str, rooms: set[str]) -> bool:
    return any(module == room or (room != "vjepa" and module.startswith(room + ".")) for room in rooms)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> set[str]:
    """Every module imported anywhere in the file; `from vjepa import config` counts as vjepa.config."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module in ("vjepa", "data_prep") or (ROOT / node.module.replace(".", "/")).is_dir():
                found |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return found


@pytest.mark.fast
@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_rooms_import_only_from_their_left(path: Path) -> None:
    module = module_name(path)
    for room, allowed in ROOMS.items():
        if not inside(module, {room}):
            continue
        for name in imports(path):
            if name.split(".")[0] in ("vjepa", "data_prep"):
                package = name in (
                    "vjepa.data",
                    "vjepa.masking",
                    "vjepa.models",
                    "vjepa.objectives",
                    "vjepa.health",
                    "vjepa.training",
                    "vjepa.probing",
                    "vjepa.interop",
                    "vjepa.tuning",
                    "vjepa.predicting",
                    "vjepa.planning",
                )
                assert package or inside(name, allowed | {room}), f"{module} imports {name}"
    if module.startswith("vjepa") and not inside(module, {"vjepa.training", "vjepa.predicting", "vjepa.planning"}):
        assert not any(name.split(".")[0] == "data_prep" for name in imports(path)), f"{module} imports data_prep"
    for library, rooms in ONLY_IN.items():
        if any(name.split(".")[0] == library for name in imports(path)):
            assert inside(module, rooms), f"{module} imports {library}"


@pytest.mark.fast
def test_no_import_goes_round_in_a_circle() -> None:
    """Not between rooms, and none inside a room either; what a type checker alone reads does not count."""
    modules = {module_name(path) for path in SOURCES}
    packages = {name for name in modules if any(other.startswith(name + ".") for other in modules)}
    graph = {module_name(path): imports(path) & modules - packages for path in SOURCES}
    left = dict(graph)
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"in or behind a circle: {sorted(left)}"


@pytest.mark.fast
def test_imports_stand_at_the_top_or_say_why_not() -> None:
    """The few inside functions have their reason beside them, on the line or above it."""
    inside_functions = []
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for function in ast.walk(tree_of(path)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    inside_functions.append(f"{module_name(path)}:{node.lineno}")
                    around = lines[node.lineno - 2 : node.end_lineno]
                    assert any("#" in line for line in around), f"{inside_functions[-1]}: no reason beside the import"
    assert len(inside_functions) < 19, inside_functions


@pytest.mark.fast
def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module_name(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


# Articles, pronouns, numbers, conjunctions, and what a sentence about something else opens with.
NO_VERBS = """
a an the it its they their them this that these those he she we you one two three each every all any both no none some
several so such same as like likewise of in on at for from by with without within to and or but if while what which
whether who whose whom how where when why there here more most only whatever whichever
"""


@pytest.mark.fast
@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_docstrings_open_with_a_verb(path: Path) -> None:
    """Of functions, methods and classes; a trivial one may have none."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
            text := ast.get_docstring(node)
        ):
            first, where = text.split()[0].strip(",.:;"), f"{module_name(path)}:{node.lineno} {node.name}"
            is_verb = first.isalpha() and first[0].isupper() and first.lower() not in NO_VERBS.split()
            assert is_verb, f"{where}: {text.splitlines()[0]}"


@pytest.mark.fast
def test_one_place_each() -> None:
    """Names of a run folder and renaming what was written are known to one module each."""
    for path in SOURCES:
        module, text = module_name(path), path.read_text()
        strings = {
            node.value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if module != "vjepa.run_folder":
            known = {"checkpoints", "latest", "metrics.jsonl", "summary.json", "environment.json", "state.json"}
            assert not strings & known, f"{module} knows {sorted(strings & known)} of a run folder"
        if module not in {"vjepa.files", "vjepa.run_folder"}:
            assert "os.replace(" not in text, f"{module} renames by itself; vjepa.files writes whole files and folders"


@pytest.mark.fast
def test_no_source_file_is_longer_than_450_lines() -> None:
    lengths = {module_name(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: num for name, num in lengths.items() if num > 450} == {}


@pytest.mark.fast
def test_every_setting_is_read_somewhere() -> None:
    """A field counts as read where code outside vjepa.config has it as an attribute, such as `optim.lr`."""
    read = set()
    for path in SOURCES:
        tree = tree_of(path)
        if path.parent.name == "config":  # its validators read fields too, but that alone is no use of them
            continue
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    kinds = (config.Config, config.FinetuneConfig, config.WorldConfig)
    fields = {line.split(" = ")[0].strip() for kind in kinds for line in config.describe(kind)}
    fields |= {f"data.mix.{name}" for name in config.MixedSource.model_fields}
    names = {path: path.rsplit(".", 1)[-1] for path in fields}
    unread = {path for path, name in names.items() if name not in read}
    assert unread <= KNOWN_BY_TYPE, unread - KNOWN_BY_TYPE


# Used inside the config: preset fills in the settings beside it, dir is the run's `folder`.
KNOWN_BY_TYPE = {"model.encoder.preset", "run.dir"}


@pytest.mark.fast
def test_shipped_configs_are_valid_and_open_with_their_command() -> None:
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    assert paths
    for path in paths:
        config.load_training(str(path))
        assert re.match(rf"# python -m vjepa\.\w+ +(--config configs/)?{path.stem}\b", path.read_text()) or (
            path.stem == "demo" and "python -m vjepa.train" in path.read_text().splitlines()[0]
        ), path.name


PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("*/**/*.md")] if ".venv" not in path.parts)


def readme_commands() -> list[str]:
    text = "".join(path.read_text() for path in PAGES)
    return sorted(set(re.findall(r"python -m ((?:vjepa|data_prep)\.\w+)", text)))


@pytest.mark.fast
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


def test_commands_named_in_the_readme_exist() -> None:
    commands = readme_commands()
    assert {"vjepa.train", "vjepa.probe", "vjepa.export", "data_prep.index"} <= set(commands)
    for name in commands:
        answer = subprocess.run(
            [sys.executable, "-m", name, "--help"], capture_output=True, text=True, timeout=60, check=False
        )
        assert answer.returncode == 0 and name in answer.stdout, (name, answer.stderr)


@pytest.mark.fast
def test_help_imports_no_heavy_library() -> None:
    heavy = ("torch", "decord", "av", "sklearn", "matplotlib")
    commands = ", ".join(
        [
            *(
                f"vjepa.{name}"
                for name in (
                    "train",
                    "tune",
                    "probe",
                    "finetune",
                    "predict",
                    "plan",
                    "extract",
                    "bench",
                    "export",
                    "report",
                )
            ),
            *(f"data_prep.{name}" for name in ("index", "describe", "transcode", "shard")),
        ]
    )
    code = f"import sys, {commands}; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.fast
def test_readme_opens_with_the_two_commands_that_ci_runs() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    block = re.search(r"```bash\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    commands = [line for line in block.group(1).splitlines() if line and not line.startswith("#")]
    assert commands == ["pip install -e . && python -m vjepa.train", "pip install -e '.[test]' && pytest"]
    assert "README.md" in ci  # it takes them from there, so they cannot drift apart
