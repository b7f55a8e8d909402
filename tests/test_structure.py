"""The walls of the house: which room may know which. Each test keeps one of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainers.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")
#: A door speaks to a terminal and may read the environment.
DOORS = {
    "app.py",
    "studio/__init__.py",
    *(f"trainers/{n}.py" for n in ("train", "sample", "caption", "export", "bench")),
}


def sources(*folders: str) -> list[Path]:
    """The Python files below folders of the checkout, and app.py with studio."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return found + ([ROOT / "app.py"] if "studio" in folders else [])


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes(path: Path, *, typing_only: bool = True) -> Iterator[ast.AST]:
    """Every node of a file; typing_only=False leaves out what stands under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"), str(path))]
    while waiting:
        node = waiting.pop()
        yield node
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing_only:
            children = node.orelse
        waiting += children


def imports(path: Path, *, typing_only: bool = True) -> set[str]:
    """The modules that a file imports, anywhere in it; `from a import b` gives a.b, and a if b is something in a."""
    found: set[str] = set()
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in nodes(path, typing_only=typing_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner if all(is_module(name) for name in inner) else inner | {base}
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def test_trainers_never_import_the_studio():
    assert sources("trainers")
    rooms = ("studio", "gradio", "app")
    wrong = [(short(f), m) for f in sources("trainers") for m in imports(f) if any(within(m, room) for room in rooms)]
    assert not wrong


@pytest.mark.parametrize(
    "modules",
    [
        "studio",
        "studio.ui",
        "studio.tabs.dataset, studio.tabs.configure, studio.tabs.train, studio.tabs.compare",
        "studio.worker, studio.jobs, studio.workspace, studio.progress, studio.forms, studio.access",
        "trainers.config, trainers.events, trainers.runs, trainers.families, trainers.data.clips, trainers.data.video",
    ],
)
def test_the_face_loads_no_torch(modules):
    code = f"import {modules}, sys; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_what_the_studio_takes_from_the_trainers_is_torch_free():
    allowed = ("config", "settings", "errors", "events", "runs", "families")
    allowed += ("data.clips", "data.formats", "data.images", "data.ledger", "data.samples", "data.video")
    wrong = []
    for file in sources("studio"):
        for module in imports(file):
            if module != "trainers" and within(module, "trainers"):
                inner = module.removeprefix("trainers.")
                deep = within(inner, "families") and inner.rsplit(".", 1)[-1] in ("model", "checkpoint")
                if deep or not any(within(inner, name) or within(name, inner) for name in allowed):
                    wrong.append((short(file), module))
    assert not wrong


def test_a_familys_weights_are_imported_by_load_alone():
    """The table gives its model and exporter as addresses; no import statement elsewhere names them."""
    wrong = []
    for file in sources("trainers", "studio"):
        for module in imports(file):
            parts = module.split(".")
            weights = parts[:2] == ["trainers", "families"] and len(parts) > 3 and parts[3] in ("model", "checkpoint")
            if weights and file.parent != ROOT / "trainers" / "families" / parts[2]:
                wrong.append((short(file), module))
    assert not wrong
    for family in FAMILIES.values():
        assert family.model.startswith(f"trainers.families.{family.name}.")
        assert family.exporter.startswith(f"trainers.families.{family.name}.")


def test_no_import_circle():
    files = {module_of(file): file for file in sources("trainers", "studio")}
    graph = {name: sorted((imports(file, typing_only=False) & set(files)) - {name}) for name, file in files.items()}
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                walk(other, [*way, name])
            done.add(name)

    for name in graph:
        walk(name, [])


def test_the_schema_knows_no_family():
    known = [m for m in imports(ROOT / "trainers" / "config.py") if within(m, "trainers")]
    assert all(within(module, "trainers.settings") for module in known)
    assert not [m for m in imports(ROOT / "trainers" / "settings.py") if within(m, "trainers")]
    for file in sources("trainers/families"):
        if file.name == "config.py":
            own = (module_of(file.parent / "__init__.py"), "trainers.families.base", "trainers.families.rules")
            others = [m for m in imports(file) if within(m, "trainers.families") and not any(within(m, o) for o in own)]
            assert not others, short(file)


def test_no_tab_imports_a_tab():
    tabs = sources("studio/tabs")
    assert len(tabs) >= 4
    wrong = [(short(f), m) for f in tabs for m in imports(f) if within(m, "studio.tabs") and m != "studio.tabs"]
    assert not wrong


def test_no_file_outside_its_folder_names_a_family():
    """Neither in a string, nor in a name, nor in a comment: what a family needs is asked of its `ModelFamily`."""
    table = ROOT / "trainers" / "families" / "__init__.py"
    wrong = []
    for name in FAMILIES:
        room = ROOT / "trainers" / "families" / name
        for file in sources("trainers", "studio"):
            if file.is_relative_to(room):
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                words = line.lower().replace("cogvideox-factory", "")  # a trainer of several families is called so
                if name in words and not (file == table and line.startswith(("from ", "FAMILIES"))):
                    wrong.append(f"{short(file)}:{number}: {line.strip()}")
    assert not wrong


def test_every_file_in_a_run_has_one_writer():
    """The trainers write events, checkpoints and samples; the studio writes wishes and the config."""
    for file in sources("studio"):
        text = file.read_text(encoding="utf-8")
        assert "EventLog" not in text, short(file)
        assert ".new_checkpoint(" not in text, short(file)
        assert ".prune(" not in text, short(file)
    for file in sources("trainers"):
        assert ".wish(" not in file.read_text(encoding="utf-8"), short(file)
    names = ("events.jsonl", "control.jsonl", "config.yaml")
    for file in sources("trainers", "studio"):
        if short(file) in ("trainers/runs.py", "trainers/families/dynamicrafter/facts.py"):  # there it is a base's
            continue
        for node in nodes(file):
            if isinstance(node, ast.Constant) and node.value in names:
                raise AssertionError(f"{short(file)}:{node.lineno} spells {node.value}; trainers/runs.py names it")


def test_only_doors_read_the_environment():
    """Handing the whole environment on to a child process is not reading it; asking for a variable is."""
    wrong = []
    for file in sources("trainers", "studio"):
        if short(file) in {*DOORS, "trainers/terminal.py"}:  # what the doors have in common
            continue
        for node in nodes(file):
            asks = (
                (isinstance(node, ast.Attribute) and node.attr in ("getenv", "putenv"))
                or (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ")
                or (isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os.environ" and node.attr != "copy")
                or (isinstance(node, ast.Compare) and any(ast.unparse(c) == "os.environ" for c in node.comparators))
            )
            if asks:
                wrong.append(f"{short(file)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong


def test_only_doors_print():
    wrong = []
    for file in sources("trainers", "studio"):
        for node in nodes(file):
            prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if prints and short(file) not in DOORS:
                wrong.append(f"{short(file)}:{node.lineno}")
    assert not wrong


def test_no_path_of_a_persons_machine():
    """Every example works where it was cloned to."""
    needles = ["/" + top + "/" for top in ("root", "home", "Users", "work", "mnt")] + [".." + "/shared"]
    files = [*sources("trainers", "studio", "examples", "tests"), *(ROOT / "examples").rglob("*.yaml")]
    files += [*(ROOT / "examples").rglob("*.ipynb"), *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / ".ci" / "run"]
    wrong = [(short(f), needle) for f in files for needle in needles if needle in f.read_text(encoding="utf-8")]
    assert not wrong
