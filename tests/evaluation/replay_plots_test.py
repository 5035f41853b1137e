import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from sparse_prefix_jax.evaluation import Capacity, bounds_over_time, simulate
from sparse_prefix_jax.evaluation.replay_plots import (
  draw_overlaps,
  draw_saved,
  plot_replay,
)
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import changed_regime

STREAM = changed_regime(before=60, after=40, documents_first=True)


@pytest.fixture(scope="module")
def report():
  policy = PlacementPolicy("adaptive", chunk=STREAM.block)
  return simulate(STREAM, policy, Capacity("states", 4))


@pytest.fixture(scope="module")
def stretches(report):
  return bounds_over_time(STREAM, report, chunk=STREAM.block, stretches=5)


def test_positions_stand_over_overlaps(report):
  chosen, overlaps = Figure().subplots(2)
  draw_overlaps(chosen, overlaps, report)
  (points,) = chosen.collections
  drawn = [tuple(point) for point in np.asarray(points.get_offsets())]
  assert drawn == [
    (position, index)
    for index, one in enumerate(report.outcomes)
    for position in one.positions
  ]
  matched = sum(one.overlap > 0 for one in report.outcomes)
  heights = [bar.get_height() for bar in overlaps.containers[0]]
  assert sum(heights) == matched


def test_all_positions_are_within_the_axes(report):
  """Those of the first request and of the deepest state lay on the frame."""
  few = dataclasses.replace(report, outcomes=report.outcomes[:3])
  for shown in (report, few):
    chosen, overlaps = Figure().subplots(2)
    draw_overlaps(chosen, overlaps, shown)
    depths, requests = chosen.collections[0].get_offsets().T
    left, right = overlaps.get_xlim()
    below, above = chosen.get_ylim()
    assert left < depths.min() <= depths.max() < right
    assert below > requests.max() >= requests.min() > above
  assert chosen.collections[0].get_sizes() > 20  # points^2: three are seen


def test_what_is_drawn_over_time_is_what_was_saved(report, stretches):
  axes = Figure().subplots()
  draw_saved(axes, [report, report], stretches)
  saved, again, bound = (patch.get_data() for patch in axes.patches)
  assert saved.edges.tolist() == [0, 20, 40, 60, 80, 100]
  for index, (first, last, most) in enumerate(stretches):
    part = report.outcomes[first:last]
    total = sum(one.length for one in part)
    percent = 100 * sum(one.restored for one in part) / total
    assert saved.values[index] == again.values[index] == percent
    assert bound.values[index] == 100 * most / total >= percent


def test_a_picture_of_both(tmp_path, report, stretches):
  picture = tmp_path / "new" / "plot.png"
  plot_replay(report, stretches, picture)
  assert picture.read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_refused(tmp_path, report, stretches):
  nothing = dataclasses.replace(report, outcomes=())
  for bad, parts, sentence in (
    (nothing, stretches, "report must have outcomes"),
    (report, [], "must not be empty"),
    (report, stretches[:2], "reports must have outcomes of 40 requests"),
  ):
    with pytest.raises(ValueError, match=sentence):
      plot_replay(bad, parts, tmp_path / "plot.png")
  assert not (tmp_path / "plot.png").exists()
