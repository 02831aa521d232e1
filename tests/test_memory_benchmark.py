"""The measurement of a long run's memory: what is noted when, and the slope."""

from __future__ import annotations

from argparse import ArgumentParser

import pytest

from gmm_anomaly.benchmark import memory


def arguments(*given):
    parser = ArgumentParser()
    memory.add_arguments(parser)
    return parser.parse_args([*map(str, given)])


def test_slope_is_that_of_the_second_half_in_kilobytes():
    filling = [(step, 100.0 + 5 * step) for step in range(10)]
    flat = [(step, 900.0 + 0.25 * step) for step in range(10, 20)]
    assert memory.slope(filling + flat) == pytest.approx(250)


def test_a_short_run_notes_every_so_many_iterations_and_frames(tmp_path, capsys):
    figure = tmp_path / "memory.png"
    found = memory.run(arguments("--iterations", 9, "--frames", 8, "--points", 4, "--figure", figure))
    tables = found["resident_MB"]
    assert [step for step, _ in tables["iterations"]] == [2, 4, 6, 8]
    assert [step for step, _ in tables["frames"]] == [2, 4, 6, 8]
    # torch alone is more than 50 MB.
    assert all(50 < megabytes < 20_000 for table in tables.values() for _, megabytes in table)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("MB resident") == 8


def test_too_few_points_are_refused():
    with pytest.raises(SystemExit, match="found 5 points, 2000 iterations, 9 frames"):
        memory.run(arguments("--points", 5, "--frames", 9))
