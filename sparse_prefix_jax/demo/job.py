"""The job: warm up, serve under every strategy, compare, write, print.

One model serves all strategies, and all caches have one size, so that every
program is compiled once, in the warm-up, and no compilation is in a time.
"""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from sparse_prefix_jax.cache.choices import serving_planner
from sparse_prefix_jax.contract import ContractError
from sparse_prefix_jax.demo import picture, results
from sparse_prefix_jax.demo.serving import (
  CAPACITY,
  DECODED,
  new_cache,
  serve_prompt,
)
from sparse_prefix_jax.demo.strategy import LEVELS, Strategy, strategies
from sparse_prefix_jax.machine import environment
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.presets import preset
from sparse_prefix_jax.workloads.demo_corpus import demo_requests

_SEED = 42
_COMPILED = "/jax/core/compile/backend_compile_duration"


def run_demo(
  out: str | Path,
  *,
  config: ModelConfig | None = None,
  requests: int | None = None,
  levels: Sequence[int] = LEVELS,
) -> dict[str, Any]:
  """Serves the demo's stream under every strategy and checks every bit.

  The model has random weights: speed and exactness do not depend on what it
  has learned. Everything but the times is the same in every run. The table goes
  to stdout, progress bars to stderr.

  Args:
    out: folder for report.json and pareto.png; made if need be.
    config: model, the preset "demo" by default.
    requests: how many requests of the stream to serve, all by default.
    levels: states per entry at which strategies are compared.

  Returns:
    The content of report.json: machine, versions and date, model, number of
    compilations before and while serving, and under `strategies` the fields of
    `Result` for each.

  Raises:
    OSError: the folder cannot be written to; nothing has been computed then.
    ValueError: a number of requests or a level below 1, or a model without
      room for the prompts.
    MissingExtraError: what draws the picture, or the tokenizer, is not
      installed; nothing has been computed then.
    ContractError: an output differs from that of the run without a cache; the
      report is written nonetheless.
  """
  picture.library()  # rather told now than after minutes of serving
  folder = _writable(Path(out))
  prompts = _prompts(requests)
  model = HybridDecoder(config or preset("demo"), rngs=nnx.Rngs(0))
  tried = strategies(
    lengths=[prompt.size for prompt in prompts],
    levels=levels,
    chunk=model.config.numerics.chunk,
  )
  with _compilations() as warming:
    _warm_up(model, tried)
  with _compilations() as serving:
    rows = _serve_all(model, tried, prompts)
  report = _report(model, prompts, rows) | {
    "compilations": {"warm_up": len(warming), "serving": len(serving)}
  }
  text = json.dumps(report, indent=2) + "\n"
  (folder / "report.json").write_text(text, encoding="utf-8")
  picture.draw(rows, folder / "pareto.png", title=_title(report))
  print(results.table(rows))
  _check(rows)
  print(
    "All prefill and decode logits equal those without a cache, bit for bit.\n"
    f"Written: {folder / 'report.json'}, {folder / 'pareto.png'}"
  )
  return report


def _writable(folder: Path) -> Path:
  """Makes the folder and writes to it, for a moment.

  Permissions alone do not tell: who runs as root has all of them, and a disk
  may be mounted read-only.

  Raises:
    OSError: one sentence that names the folder and the reason.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      return folder
  except OSError as error:
    raise OSError(
      f"out is {str(folder)!r}, where nothing can be written "
      f"({error.strerror}); it must be a folder that can be written to."
    ) from None


def _prompts(requests: int | None) -> list[np.ndarray]:
  """The first prompts of the stream, int32 [t] each.

  Raises:
    ValueError: fewer than one, or more than there are.
  """
  stream = [r.token_ids for r in demo_requests(interleave_seed=_SEED)]
  if requests is not None and not 1 <= requests <= len(stream):
    raise ValueError(
      f"requests is {requests}; the stream has 1 to {len(stream)}."
    )
  return stream[:requests]


@contextlib.contextmanager
def _compilations() -> Iterator[list[float]]:
  """Collects the seconds of every compilation while it is open.

  Yields:
    A list that grows by one number for each program that XLA compiles.
  """
  seconds: list[float] = []

  def note(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED:
      seconds.append(duration_secs)

  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    yield seconds
  finally:
    jax.monitoring.unregister_event_duration_listener(note)


def _warm_up(model: HybridDecoder, tried: Sequence[Strategy]) -> None:
  """Compiles each program once: the rungs, decode, the head, the solver.

  A prompt just short of a rung's chunks runs the program of that rung. The
  solver is compiled for each budget, which is static.
  """
  config, numerics = model.config, model.config.numerics
  cache = new_cache(model, tried[0].policy)
  steps = [rung * numerics.chunk - DECODED for rung in numerics.ladder]
  learned = [s.policy for s in tried if s.policy.name == "optimal"]
  with tqdm(total=len(steps) + len(learned), desc="compiling") as bar:
    for length in steps:
      serve_prompt(model, cache, np.zeros(length, np.int32))
      bar.update()
    for policy in learned:
      serving_planner(policy, config, None)  # as every cache makes its own
      bar.update()


def _serve_all(
  model: HybridDecoder,
  tried: Sequence[Strategy],
  prompts: Sequence[np.ndarray],
) -> list[results.Result]:
  """A row for each strategy; the first is what the others are compared to.

  Each request is served under every strategy before the next one comes, so
  that a machine that is busy for a while is so for all of them.
  """
  caches = [new_cache(model, strategy.policy) for strategy in tried]
  turns = [
    [serve_prompt(model, cache, prompt) for cache in caches]
    for prompt in tqdm(prompts, f"serving {len(tried)} ways", unit="request")
  ]
  total = sum(prompt.size for prompt in prompts)
  reference, *_ = runs = list(zip(*turns, strict=True))
  return [
    results.summarise(strategy, served, reference, total)
    for strategy, served in zip(tried, runs, strict=True)
  ]


def _report(
  model: HybridDecoder,
  prompts: Sequence[np.ndarray],
  rows: Sequence[results.Result],
) -> dict[str, Any]:
  """Where it was measured, what was served, and the rows, ready for JSON.

  Args:
    model: what served.
    prompts: what it was asked.
    rows: one for each strategy.
  """
  return environment() | {
    "model": model.config.to_json(),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
    "requests": len(prompts),
    "tokens_total": sum(prompt.size for prompt in prompts),
    "decoded_per_request": DECODED,
    "capacity_bytes": CAPACITY,
    "strategies": [dataclasses.asdict(row) for row in rows],
  }


def _title(report: dict[str, Any]) -> str:
  """What the picture shows."""
  return (
    f"{report['requests']} requests about shared documents,"
    f" {report['tokens_total']:,} prompt tokens; hybrid model of"
    f" {report['parameters'] / 1e6:.1f} M parameters on a CPU"
  )


def _check(rows: Sequence[results.Result]) -> None:
  """The contract, as the demo can see it.

  Raises:
    ContractError: naming every strategy that changed an output, with the number
      of bits.
  """
  broken = [row for row in rows if row.differing_bits]
  if broken:
    names = ", ".join(f"{r.strategy} ({r.differing_bits} bits)" for r in broken)
    raise ContractError(
      f"outputs differ from those without a cache under {names}: the contract "
      "of path independence is broken."
    )
