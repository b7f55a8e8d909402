"""The measurements measure: tiny numbers of rounds, no claim about speed."""

from __future__ import annotations

import json

from trainers import bench


def test_loop_bench_measures_both_loops_and_a_warm_epoch(tmp_path, capsys):
    bench.main(["loop", "--rounds", "2", "--steps", "2", "--json", str(tmp_path / "out.json")])
    shown = capsys.readouterr().out
    results = {r["name"]: r for r in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert results["loop-overhead.animatediff.tiny"]["value"] > 0.2
    assert results["our-step.animatediff.tiny"]["value"] > 0
    assert results["warm-epoch.decoded"]["value"] == 0
    assert "at most 1.100" in shown


def test_a_bound_that_is_not_kept_fails():
    assert bench.Result("x", 1.2, "x bare", 1.1).passed is False
    assert "FAIL" in bench.Result("x", 1.2, "x bare", 1.1).line()
    assert bench.Result("x", 1.2, "ms", None).passed
