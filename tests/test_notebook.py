"""The notebook: no outputs are stored, and every cell but the installation runs, twice where a person would."""

from __future__ import annotations

import os

import nbclient
import nbformat
import pytest


@pytest.fixture
def notebook(root):
    return nbformat.read(root / "examples" / "colab.ipynb", as_version=4)


def is_install(cell):
    return "install" in cell.metadata.get("tags", [])


def test_no_outputs_are_stored(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_the_installation_keeps_the_notebooks_torch(notebook):
    (cell,) = [cell for cell in notebook.cells if is_install(cell)]
    assert "torch=={version('torch')}" in cell.source
    assert "%pip install --quiet -r requirements.txt -c {constraints}" in cell.source


def test_the_notebook_walks_the_demo(notebook, root, tmp_path):
    """In a folder of its own, with a shorter run and fewer sampling steps; the README's tests train the whole demo."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and not is_install(cell)]
    for cell in cells:
        cell.source = cell.source.replace('workspace="workspace"', f'workspace="{tmp_path}/workspace"')
        cell.source = cell.source.replace('Path("runs")', f'Path("{tmp_path}/runs")')
        for config, setting in (("train.yaml", "max_train_steps=5"), ("compare.yaml", "num_inference_steps=4")):
            cell.source = cell.source.replace(f"{config} --run-dir", f"{config} --set {setting} --run-dir")
    (again,) = [cell for cell in cells if "studio.launch(" in cell.source]
    cells.insert(cells.index(again), again.copy())  # running the cell again opens the page anew
    notebook.cells = cells

    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(root / "examples")}})
    client.execute(env=os.environ | {"PYTHONPATH": ""})

    (run,) = [path for path in (tmp_path / "runs").iterdir() if not path.name.endswith("-compare")]
    assert (run / "checkpoints" / "step-000005").is_dir()
    assert (run / "exports" / "motion_module.safetensors").is_file()
    assert (tmp_path / "workspace" / "datasets" / "orbit" / "metadata.jsonl").is_file()
    pages = [output for cell in cells if "studio.launch(" in cell.source for output in cell.outputs]
    assert sum("iframe" in output.get("data", {}).get("text/html", "") for output in pages) == 2
    shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.outputs]
    assert any(html.count("<video") == 8 for html in shown)  # base and one take, two prompts, two seeds
