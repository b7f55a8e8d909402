"""Training teaches: each method brings a motion to the demo's base that it does not know, and leaves the rest alone.

Far fewer steps than anybody would take: enough to tell learning from none.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.demo import shapes
from examples.demo.score import BASE, Asked, load, request, seen, shares
from trainers.runs import RunFolder
from trainers.sample import sample_clip
from trainers.train import main as train

ROOT = Path(__file__).parent.parent
METHODS = {
    "lora": ["max_train_steps=120"],
    "motion_module": ["max_train_steps=140", "dataset.batch_size=2", "optimizer.learning_rate=1.5e-3"],
    "full": ["max_train_steps=100", "optimizer.learning_rate=7e-4"],
}
ALWAYS = ["optimizer.lr_scheduler=constant_with_warmup", "validation.every_steps=null", "checkpoint.every_steps=null"]
#: One clip of each colour, every shape twice; no two from the same noise.
ORBITS = [Asked(shapes.SHAPES[n % 3], colour, "orbit", 100 + n) for n, colour in enumerate(shapes.COLOURS)]


def score(checkpoint: Path | None) -> dict[str, float]:
    """measure -> share of the orbits that show it."""
    model = load(BASE, checkpoint)
    return shares([(asked, seen(sample_clip(model, request(asked.prompt), asked.seed))) for asked in ORBITS])


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # the demo's config counts from there


def test_the_base_knows_no_orbit():
    found = score(None)
    assert found["path"] == 0
    assert found["shape"] >= 5 / 6
    assert found["colour"] >= 5 / 6


@pytest.mark.parametrize("method", METHODS)
def test_each_method_teaches_the_orbit_and_keeps_shape_and_colour(method, tmp_path):
    settings = [word for setting in (f"method={method}", *METHODS[method], *ALWAYS) for word in ("--set", setting)]
    assert train(["--config", "examples/demo/orbit.yaml", "--run-dir", str(tmp_path / "run"), *settings]) == 0
    found = score(RunFolder(tmp_path / "run").checkpoints()[-1].path)
    assert found["path"] >= 2 / 6
    assert found["shape"] >= 5 / 6
    assert found["colour"] >= 5 / 6
