from typing import NamedTuple

import pytest

from benchmarks.frontier import against_others, frontier, leads, sentence


class Point(NamedTuple):
  states: float
  saved: float
  mean: float


POINTS = {
  "no_cache": Point(0.0, 0.0, 4.0),
  "ours:1": Point(1.0, 0.4, 2.0),
  "ours:3": Point(3.0, 0.6, 1.0),
  "ours:5": Point(5.0, 0.5, 1.5),
  "half": Point(0.5, 0.2, 3.0),
  "two": Point(2.0, 0.45, 1.6),
  "better": Point(2.0, 0.55, 1.4),
  "many": Point(9.0, 0.6, 1.0),
}


def test_the_frontier_keeps_what_nobody_beats():
  names = ["no_cache", "half", "ours:1", "better", "ours:3"]
  assert frontier(POINTS, "mean") == names
  assert frontier(POINTS, "saved") == names


def test_leads_are_read_from_the_straight_line():
  """More states than are of use stay unused: 9 states count as 3."""
  found = leads(POINTS, "ours", "saved")
  assert found == pytest.approx(
    {"no_cache": 0, "half": 0, "two": 0.05, "better": -0.05, "many": 0}
  )
  found = leads(POINTS, "ours", "mean")
  assert found["two"] == pytest.approx(0.1)
  assert found["better"] == pytest.approx(-0.1)
  assert found["many"] == 0


def test_where_it_falls_short_is_named():
  compared = against_others(POINTS, "ours", ["saved", "mean"])
  assert compared["falls_short"] == {"saved": ["better"], "mean": ["better"]}
  assert "falls short of better by 0.1" in sentence(compared, "ours", "mean")
  del compared["leads"]["mean"]["better"]
  compared["falls_short"]["mean"] = []
  assert sentence(compared, "ours", "mean") == (
    "mean: with as many states ours is ahead of 1 points, equal to 3, behind"
    " none"
  )


def test_nothing_is_claimed_below_the_first_point():
  points = {name: POINTS[name] for name in ("half", "two", "ours:1", "ours:3")}
  assert list(leads(points, "ours", "saved")) == ["two"]
  assert leads(points, "theirs", "saved") == {}
