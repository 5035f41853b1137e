"""curve.png: what a training learned, step by step."""

import pathlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from sparse_prefix_jax import extras

_SMOOTH, _PARTS = 50, 10  # steps of a mean at most; parts of a training


def figures() -> Any:
  """The module of matplotlib that makes figures, loaded when it is needed.

  Raises:
    MissingExtraError: matplotlib is not installed.
  """
  return extras.optional("matplotlib.figure", "train")


def draw_curve(
  report: Mapping[str, Any], file: pathlib.Path | IO[bytes]
) -> None:
  """Draws the share of right answers and the length of documents over steps.

  Args:
    report: What `train` returns.
    file: PNG file to write.

  Raises:
    MissingExtraError: matplotlib is not installed.
    OSError: The file cannot be written.
  """
  figure = figures().Figure(figsize=(8, 4.5), layout="constrained")
  axes = figure.subplots()
  right = np.asarray(report["right"])
  width = max(1, min(_SMOOTH, right.size // _PARTS))
  mean = np.convolve(right, np.full(width, 1 / width), mode="valid")
  steps = np.arange(1, right.size + 1)
  # A line of one point is invisible.
  dot = "." if right.size == 1 else ""
  axes.plot(steps[width - 1 :], 100 * mean, dot + "-", color="#0072b2")
  axes.set_xlabel("step")
  smoothed = f", mean of {width} steps" if width > 1 else ""
  axes.set_ylabel(f"answers right, %{smoothed}", color="#0072b2")
  axes.set_ylim(0, 100)
  axes.grid(alpha=0.3)
  axes.xaxis.get_major_locator().set_params(integer=True)
  lengths, tokens = axes.twinx(), np.asarray(report["tokens"])
  lengths.step(steps, tokens, dot + "-", color="#d55e00", where="post")
  lengths.set_yscale("log", base=2)
  lengths.set_yticks(
    np.unique(tokens), [f"{x:,.0f}" for x in np.unique(tokens)]
  )
  lengths.set_ylabel("tokens of a document", color="#d55e00")
  figure.savefig(file, format="png", dpi=150)
