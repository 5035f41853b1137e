"""pareto.png: what a state buys, in tokens and in time.

Lower and further left is better: a strategy is worth its states if no other
one recomputes less with as few of them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_prefix_jax import extras
from sparse_prefix_jax.demo.results import Result
from sparse_prefix_jax.writable import naming

# Colours that colour-blind people tell apart (Okabe and Ito); marker, size.
_STYLES = {
  "no_cache": ("#000000", "X", 9),
  "last": ("#56b4e9", "P", 9),
  "sqrt": ("#cc79a7", "*", 13),
  "dyadic": ("#e69f00", "v", 8),
  "block": ("#999999", "s", 7),
  "balanced": ("#009e73", "^", 8),
  "dp": ("#d55e00", "o", 11),
  "optimal": ("#0072b2", "D", 5),
  "conditional": ("#a00000", "p", 9),
}


def draw(results: Sequence[Result], path: Path, *, title: str) -> None:
  """Draws tokens recomputed and time to first token against states per entry.

  Args:
    results: rows of one run, at least one.
    path: PNG file to write.
    title: what was served, by what.

  Raises:
    MissingExtraError: matplotlib is not installed.
    OSError: the file cannot be written.
  """
  figure = library().Figure(figsize=(10, 4.8), layout="constrained")
  tokens, seconds = figure.subplots(1, 2)
  _panel(
    tokens,
    results,
    [100 * r.tokens_recomputed / r.tokens_total for r in results],
  )
  tokens.set_ylabel("prompt tokens recomputed, %")
  tokens.set_ylim(0, 105)
  times = [1e3 * r.first_token_p50_seconds for r in results]
  _panel(seconds, results, times)
  seconds.set_ylabel("median time to first token, ms")
  seconds.set_ylim(0, 1.05 * max(times))
  figure.suptitle(title)
  handles, labels = tokens.get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=9)
  with naming(path):
    figure.savefig(path, dpi=150)


def library() -> Any:
  """The module of matplotlib that makes figures, loaded when it is needed.

  Raises:
    MissingExtraError: matplotlib is not installed.
  """
  return extras.optional("matplotlib.figure", "demo")


def _panel(axes: Any, results: Sequence[Result], values: list[float]) -> None:
  """One curve or point per strategy over states per entry.

  The axis of states is linear up to 1 and logarithmic beyond, so that having
  none fits on it. The rings of `dp` leave `optimal` visible where both agree.

  Args:
    axes: where to draw.
    results: one for each point.
    values: their heights, in the same order.
  """
  for name in dict.fromkeys(r.strategy for r in results):
    points = sorted(
      (r.states_per_entry, value)
      for r, value in zip(results, values, strict=True)
      if r.strategy == name
    )
    colour, marker, size = _STYLES[name]
    axes.plot(
      [x for x, _ in points],
      [y for _, y in points],
      color=colour,
      marker=marker,
      markersize=size,
      markerfacecolor="none" if name == "dp" else colour,
      linestyle=":" if name == "dp" else "-",
      label=name,
      clip_on=False,
      zorder=3,
    )
  top = max(2.0, max(r.states_per_entry for r in results))
  axes.set_xscale("symlog", base=2, linthresh=1)
  ticks = [0, *(2**e for e in range(math.ceil(math.log2(top)) + 1))]
  axes.set_xticks(ticks, [str(tick) for tick in ticks])
  axes.set_xlim(0, ticks[-1])
  axes.minorticks_off()
  axes.set_xlabel("states kept per entry")
  axes.grid(alpha=0.3)
