"""Pictures of reports: what a state buys, for every placement."""

import math
from collections.abc import Sequence
from pathlib import Path

from sparse_prefix_jax import extras
from sparse_prefix_jax.evaluation.report import SimulationReport

_MARKERS = "osD^vPX*"


def _points(
  reports: Sequence[SimulationReport], placement: str
) -> tuple[list[float], list[float]]:
  """States per entry and percent saved of one placement, in order of states."""
  chosen = sorted(
    (r.state_checkpoints_per_entry, 100 * r.saved_fraction)
    for r in reports
    if r.placement == placement
  )
  return [x for x, _ in chosen], [y for _, y in chosen]


def plot_reports(reports: Sequence[SimulationReport], path: str | Path) -> None:
  """Draws saved prompt tokens against states per entry, a line a placement.

  The dashed line is what equalled a stored prefix: the most that states can
  save.

  Args:
    reports: Reports of one stream and capacity.
    path: PNG file to write; missing folders are made.

  Raises:
    ValueError: If there are no reports.
    MissingExtraError: If matplotlib is not installed.
    OSError: If the file cannot be written.
  """
  if not reports:
    raise ValueError("reports must not be empty")
  drawing = extras.optional("matplotlib.figure", "plot")
  figure = drawing.Figure(figsize=(7, 4.5), layout="constrained")
  axes = figure.subplots()
  for index, name in enumerate(dict.fromkeys(r.placement for r in reports)):
    states, saved = _points(reports, name)
    axes.plot(states, saved, marker=_MARKERS[index % len(_MARKERS)], label=name)
  most = max(r.reusable_tokens / r.tokens_total for r in reports)
  axes.axhline(100 * most, color="grey", linestyle="--", label="reusable")
  top = max(r.state_checkpoints_per_entry for r in reports)
  if top > 4:
    axes.set_xscale("symlog", base=2, linthresh=1)
    ticks = [0, *(2**e for e in range(math.ceil(math.log2(top)) + 1))]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
  axes.set_xlabel("state checkpoints per entry")
  axes.set_ylabel("prompt tokens not recomputed, %")
  axes.set_title(f"{reports[0].trace}, {reports[0].capacity}")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=150)
