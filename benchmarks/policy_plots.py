"""What policies save of a stream, a line for each, against what may be held."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparse_prefix_jax import extras

_MARKERS = "osD^vPX*d"


def plot_streams(
  rows: Iterable[dict[str, Any]], folder: str | Path, *, prefix: str
) -> list[Path]:
  """Draws percent of the bound against the capacity, a picture per stream.

  Args:
    rows: What `rows_of` or `rows_of_bytes` yields; streams of one capacity are
      left out.
    folder: Where the pictures go; it is made if it is missing.
    prefix: What their names begin with, before that of the stream.

  Returns:
    The PNG files that were written.

  Raises:
    MissingExtraError: If matplotlib is not installed.
    OSError: If a file cannot be written.
  """
  streams: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    streams.setdefault(row["stream"], []).append(row)
  Path(folder).mkdir(parents=True, exist_ok=True)
  written = []
  for name, found in streams.items():
    if len(found) > 1:
      stem = name.partition(".")[0]
      written.append(Path(folder) / f"{prefix}_{stem}.png")
      _plot_stream(found, written[-1], stem)
  return written


def _plot_stream(rows: list[dict[str, Any]], path: Path, title: str) -> None:
  """Draws one stream."""
  drawing = extras.optional("matplotlib.figure", "plot")
  figure = drawing.Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  of_states = "slots" in rows[0]
  held = [
    row["slots"] if of_states else row["capacity_bytes"] / 2**30 for row in rows
  ]
  for index, name in enumerate(rows[0]["percent_of_upper_bound"]):
    percents = [row["percent_of_upper_bound"][name] for row in rows]
    marker = _MARKERS[index % len(_MARKERS)]
    axes.plot(held, percents, marker=marker, label=name)
  if of_states:
    plans = [
      100 * row["hindsight_tokens"] / max(row["upper_bound_tokens"], 1)
      for row in rows
    ]
    axes.plot(held, plans, color="grey", linestyle="--", label="hindsight")
  axes.set_xscale("log", base=2)
  axes.set_xticks(held, [f"{x:,g}" for x in held])
  axes.set_ylim(0, 102)
  axes.set_xlabel("states" if of_states else "capacity, GiB")
  axes.set_ylabel("prompt tokens saved, % of the bound")
  axes.set_title(title)
  axes.grid(alpha=0.3)
  axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
  figure.savefig(path, dpi=80)
