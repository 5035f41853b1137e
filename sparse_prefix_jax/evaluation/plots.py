"""Pictures of reports: what a state buys, for every placement."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from sparse_prefix_jax import extras
from sparse_prefix_jax.evaluation.report import Report

_MARKERS = "osD^vPX*"


def write_json(path: str | Path, report: Report | Sequence[Report]) -> None:
  """Writes one report, or a list of them, as JSON.

  Args:
    path: file to write; missing folders are made.
    report: what to write.

  Raises:
    OSError: the file cannot be written.
  """
  one = isinstance(report, Report)
  content = report.to_json() if one else [r.to_json() for r in report]
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
  except OSError as error:
    # A full disk is noticed at the write, which does not know the name.
    raise OSError(error.errno, error.strerror, str(path)) from None


def _points(
  reports: Sequence[Report], placement: str
) -> tuple[list[float], list[float]]:
  """States per entry and percent saved of one placement, in order of states."""
  chosen = sorted(
    (r.state_checkpoints_per_entry, 100 * r.saved_fraction)
    for r in reports
    if r.placement == placement
  )
  return [x for x, _ in chosen], [y for _, y in chosen]


def plot_reports(reports: Sequence[Report], path: str | Path) -> None:
  """Draws saved prompt tokens against states per entry, a line a placement.

  The dashed line is what equalled a stored prefix: the most that states can
  save.

  Args:
    reports: of one stream and capacity.
    path: PNG file to write; missing folders are made.

  Raises:
    ValueError: there are no reports.
    MissingExtraError: matplotlib is not installed.
    OSError: the file cannot be written.
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
