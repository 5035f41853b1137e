"""The job: warm up, serve under every strategy, compare, write, print.

One model serves all strategies, and all caches have one size, so that every
program is compiled once, in the warm-up, and no compilation is in a time.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sparse_prefix_jax.cache.choices import serving_planner
from sparse_prefix_jax.contract import ContractError
from sparse_prefix_jax.demo import answers, picture, results
from sparse_prefix_jax.demo.controls import measure_controls
from sparse_prefix_jax.demo.serving import (
  CAPACITY,
  DECODED,
  new_cache,
  serve_prompt,
)
from sparse_prefix_jax.demo.strategy import LEVELS, Strategy, strategies
from sparse_prefix_jax.demo.stream import Stream, recall_stream
from sparse_prefix_jax.machine import environment
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.writable import writable_folder, write_json_file

_COMPILED = "/jax/core/compile/backend_compile_duration"


def run_demo(
  out: str | Path,
  *,
  stream: Stream | None = None,
  model: HybridDecoder | None = None,
  requests: int | None = None,
  levels: Sequence[int] = LEVELS,
) -> dict[str, Any]:
  """Serves the demo's stream under every strategy and checks every bit.

  Everything but the times is the same in every run. The table and some answers
  go to stdout, progress bars to stderr.

  Args:
    out: folder for report.json and pareto.png; made if need be.
    stream: what is asked, questions about facts by default.
    model: what serves it, by default the model that was trained to answer these
      questions.
    requests: how many requests of the stream to serve, all by default.
    levels: states per entry at which strategies are compared.

  Returns:
    The content of report.json: machine, versions and date, model, number of
    compilations before and while serving, under `strategies` the fields of
    `Result` for each, and under `controls` how many answers are right without
    the states (see `measure_controls`), where answers are known and there is
    more than one document.

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
  folder = writable_folder(Path(out))
  stream = (stream or recall_stream()).first(requests)
  model = model or stream.make_model()
  tried = strategies(
    lengths=[prompt.size for prompt in stream.prompts],
    levels=levels,
    chunk=model.config.numerics.chunk,
  )
  with _compilations() as warming:
    _warm_up(model, tried)
  with _compilations() as serving:
    rows, given = _serve_all(model, tried, stream)
  report = _report(model, stream, rows) | {
    "compilations": {"warm_up": len(warming), "serving": len(serving)}
  }
  if stream.has_controls:
    report["controls"] = measure_controls(model, stream)
  write_json_file(folder / "report.json", report)
  picture.draw(rows, folder / "pareto.png", title=_title(report))
  print(results.table(rows))
  if stream.has_controls:
    print(answers.told(stream, given, report["controls"]))
  _check(rows)
  print(
    "All prefill and decode logits equal those without a cache, bit for bit.\n"
    f"Written: {folder / 'report.json'}, {folder / 'pareto.png'}"
  )
  return report


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
  stream: Stream,
) -> tuple[list[results.Result], list[int]]:
  """A row for each strategy; the first is what the others are compared to.

  Each request is served under every strategy before the next one comes, so
  that a machine that is busy for a while is so for all of them.

  Returns:
    The rows, and the first id that was decoded for each request.
  """
  caches = [new_cache(model, strategy.policy) for strategy in tried]
  turns = [
    [serve_prompt(model, cache, prompt) for cache in caches]
    for prompt in tqdm(
      stream.prompts, f"serving {len(tried)} ways", unit="request"
    )
  ]
  reference, *_ = runs = list(zip(*turns, strict=True))
  rows = [
    results.summarise(strategy, served, reference, stream)
    for strategy, served in zip(tried, runs, strict=True)
  ]
  return rows, [int(np.argmax(one.logits[0])) for one in reference]


def _report(
  model: HybridDecoder,
  stream: Stream,
  rows: Sequence[results.Result],
) -> dict[str, Any]:
  """Where it was measured, what was served, and the rows, ready for JSON.

  Args:
    model: what served.
    stream: what it was asked.
    rows: one for each strategy.
  """
  return environment() | {
    "model": model.config.to_json(),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
    "requests": len(stream.prompts),
    "tokens_total": stream.tokens_total,
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
