"""Pictures of one replay: where states were kept, and what it saved when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_prefix_jax import extras
from sparse_prefix_jax.byte_sizes import readable_bytes
from sparse_prefix_jax.evaluation.report import SimulationReport
from sparse_prefix_jax.evaluation.stretches import Stretch
from sparse_prefix_jax.writable import naming

_BINS = 64
_INK, _DOTS = 1000, (2, 24)  # points^2: of all dots of a column, of one
_MARGIN = 0.02  # of the depths, so that the first and the last are seen


def draw_overlaps(chosen: Any, overlaps: Any, report: SimulationReport) -> None:
  """Draws where states were kept, over how deep requests matched.

  Args:
    chosen: Axes of matplotlib for the positions of every request, downwards in
      their order.
    overlaps: Axes for the depths at which requests left what was known, and
      those that they were restored to: bars and a line.
    report: Of a replay by `simulate`, with its outcomes.

  Raises:
    ValueError: If the report has no outcomes.
  """
  outcomes = report.outcomes
  if not outcomes:
    raise ValueError("report must have outcomes, as simulate returns it")
  counts = [len(one.positions) for one in outcomes]
  positions = [p for one in outcomes for p in one.positions]
  chosen.scatter(
    positions,
    np.repeat(np.arange(len(outcomes)), counts),
    s=np.clip(_INK / len(outcomes), *_DOTS),
    linewidths=0,
  )
  chosen.set_ylim(len(outcomes) - 0.5, -0.5)
  chosen.set_ylabel("states of request")
  chosen.yaxis.get_major_locator().set_params(integer=True)
  matched = [one.overlap for one in outcomes if one.overlap]
  restored = [one.restored for one in outcomes if one.restored]
  end = max([*matched, *positions, 1])
  edges = np.linspace(0, end, _BINS + 1).tolist()
  overlaps.hist(matched, edges, color="#bbbbbb", label="matched")
  overlaps.hist(
    restored, edges, histtype="step", color="#0072b2", label="restored"
  )
  overlaps.set_xlim(-_MARGIN * end, (1 + _MARGIN) * end)
  overlaps.set_xlabel("depth, tokens")
  overlaps.set_ylabel("requests")
  overlaps.legend(fontsize="small")


def draw_saved(
  axes: Any,
  reports: Sequence[SimulationReport],
  stretches: Sequence[Stretch],
) -> None:
  """Draws what replays saved over time, against what could be saved.

  Args:
    axes: Axes of matplotlib: percent of the prompt tokens of every stretch.
    reports: Of one stream and capacity, with outcomes; a line for each.
    stretches: What `bounds_over_time` gave for one of them.

  Raises:
    ValueError: If there are no reports or stretches, or the reports are of
      other requests than the stretches.
  """
  if not reports or not stretches:
    raise ValueError("reports and stretches must not be empty")
  for report in reports:
    if len(report.outcomes) != stretches[-1].last:
      raise ValueError(
        f"reports must have outcomes of {stretches[-1].last} requests, as the"
        f" stretches, got {len(report.outcomes)}"
      )
  edges = [stretches[0].first, *(stretch.last for stretch in stretches)]
  totals = _sums([one.length for one in reports[0].outcomes], edges)
  for report in reports:
    saved = _sums([one.restored for one in report.outcomes], edges)
    axes.stairs(100 * saved / totals, edges, label=_name(report))
  bounds = [s.bound for s in stretches if s.bound is not None]
  if bounds:
    bounded = 100 * np.array(bounds) / totals
    axes.stairs(bounded, edges, color="black", ls="--", label="upper bound")
  axes.set_xlim(edges[0], edges[-1])
  axes.set_ylim(0)
  axes.set_xlabel("request")
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_ylabel("prompt tokens saved, %")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")


def plot_replay(
  report: SimulationReport,
  stretches: Sequence[Stretch],
  path: str | Path,
) -> None:
  """Draws both pictures of a replay into one file.

  Args:
    report: Of a replay, with its outcomes.
    stretches: What `bounds_over_time` gave for it.
    path: PNG file to write; missing folders are made.

  Raises:
    ValueError: As `draw_overlaps` and `draw_saved`; nothing is written then.
    MissingExtraError: If matplotlib is not installed.
    OSError: If the file cannot be written.
  """
  drawing = extras.optional("matplotlib.figure", "plot")
  figure = drawing.Figure(figsize=(8, 8), layout="constrained")
  chosen, overlaps, saved = figure.subplots(3)
  chosen.sharex(overlaps)
  draw_overlaps(chosen, overlaps, report)
  draw_saved(saved, [report], stretches)
  kind, _, amount = report.capacity.partition(":")
  held = readable_bytes(int(amount)) if kind == "bytes" else report.capacity
  chosen.set_title(f"{report.trace}, {held}: {_name(report)}")
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  with naming(path):
    figure.savefig(path, dpi=120)


def _sums(values: Sequence[int], edges: Sequence[int]) -> np.ndarray:
  """Sums between edges."""
  return np.diff(np.concatenate([[0], np.cumsum(values)])[list(edges)])


def _name(report: SimulationReport) -> str:
  """A policy as a legend has it."""
  budget = "" if report.budget is None else f":{report.budget:g}"
  return f"{report.placement}{budget}, {report.eviction}"
