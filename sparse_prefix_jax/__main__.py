"""Command line: `python -m sparse_prefix_jax demo | simulate | place | ...`.

Bad input is answered with one sentence on stderr and exit status 2, never with
a traceback. `--help` describes the commands and their flags.
"""

import contextlib
import importlib
import io
import json
import os
import reprlib
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from sparse_prefix_jax import evaluation, placement, workloads
from sparse_prefix_jax.commands.command_line import (
  SEED,
  WARMUP,
  help_text,
  hush,
  parse,
  say,
  sentence_of,
  tell,
)
from sparse_prefix_jax.contract import ContractError
from sparse_prefix_jax.workloads.arrays import MAX_BYTES, parse_npy


def _check_writable(path: Path) -> None:
  """Raises OSError before long work if a file could not be written.

  Permissions alone do not tell: who runs as root has all of them, and a disk
  may be mounted read-only. So a nameless file is written for a moment, to the
  nearest folder that exists; the others are made when there is a report.
  """
  if path.is_dir():
    raise OSError(f"cannot write {path}, which is a folder")
  if path.exists():
    if not os.access(path, os.W_OK):
      raise OSError(f"cannot write {path}: Permission denied")
    return
  folder = next(parent for parent in path.absolute().parents if parent.exists())
  try:
    with tempfile.TemporaryFile(dir=folder):
      return
  except OSError as error:
    raise OSError(f"cannot write {path}: {error.strerror}") from None


def _load_trace(values: flags.FlagValues) -> tuple[workloads.Trace, float]:
  """Reads the request stream that the flags name.

  Token files are interleaved as in the paper; traces keep their order in time.

  Returns:
    The stream in the order of serving, and the warm-up it has by default.

  Raises:
    ValueError: an unknown kind of file, a malformed one, or a flag that does
      not go with it.
    OSError: the file cannot be read.
  """
  path = Path(values.requests)
  if path.suffix == ".npz":
    for name in ("block_size", "time_unit", "skip_bad_lines"):
      if values[name].value is not None:
        raise ValueError(f"--{name} is for traces, not for token files")
    trace = workloads.load_token_file(path)
    seed = SEED if values.interleave_seed is None else values.interleave_seed
    if not -1 <= seed < 2**32:
      raise ValueError(
        f"--interleave_seed must be -1 or in [0, 2**32), got {seed}"
      )
    return (trace if seed == -1 else workloads.interleave(trace, seed)), WARMUP
  if ".jsonl" not in path.suffixes:
    raise ValueError(
      f"--requests must end in .npz, .jsonl, .jsonl.gz or .jsonl.xz, got {path}"
    )
  if values.interleave_seed is not None:
    raise ValueError(
      "--interleave_seed is for token files; traces are replayed in order"
    )
  with warnings.catch_warnings(record=True) as notes:
    warnings.simplefilter("always")
    trace = workloads.load_mooncake(
      path,
      values.block_size,
      time_unit=values.time_unit,
      skip_bad_lines=bool(values.skip_bad_lines),
    )
  for note in notes:
    tell(str(note.message))
  return trace, 0.0


_PRESET = "qwen3_5_0_8b"
# The flags that say what a byte of a capacity is for.
_OF_BYTES = ("preset", "model", "dtype", "state_share")


def _sizes(values: flags.FlagValues, chunk: int) -> evaluation.ModelSizes:
  """Bytes of a state and of a page of `chunk` tokens, and the cost of prefill.

  They are those of a preset, or of the configuration in a model's folder;
  weights are not read.

  Raises:
    ValueError: both are named, there is no such preset, or the configuration is
      none that can be computed here.
    OSError: the configuration cannot be read.
  """
  named = importlib.import_module("sparse_prefix_jax.models.named")
  name = values.preset or (None if values.model else _PRESET)
  # One rung fits models of any width, and sizes do not depend on rungs.
  ladder = (1,) if values.model else None
  config = named.named_config(
    name, values.model, dtype=values.dtype, ladder=ladder
  )
  return evaluation.ModelSizes.of_model(config, chunk, name or values.model)


def _state_share(text: str | None) -> float | str | None:
  """How `--state_share` divides a capacity, as `simulate` takes it.

  Raises:
    ValueError: the text is no share.
  """
  if text in (None, "chosen"):
    return "chosen"
  if text == "undivided":
    return None
  try:
    share = float(text)
  except ValueError:
    share = 0.0
  if 0 < share < 1:
    return share
  raise ValueError(
    "--state_share must be chosen, undivided or a number in (0, 1), got"
    f" {reprlib.repr(text)}"
  )


def _simulate(values: flags.FlagValues) -> None:
  """Replays a stream, writes the report and prints it."""
  report_path = Path(values.report)
  capacity = evaluation.parse_capacity(values.capacity)
  for name in _OF_BYTES:
    if values[name].value is not None and capacity.kind != "bytes":
      raise ValueError(f"--{name} is for a capacity in bytes")
  state_share = _state_share(values.state_share)
  trace, warmup = _load_trace(values)
  chunk = placement.DEFAULT_CHUNK if trace.block == 1 else trace.block
  policy = placement.PlacementPolicy(
    values.placement or evaluation.default_placement(capacity, values.eviction),
    values.budget,
    chunk=chunk,
  )
  if values.warmup_fraction is not None:
    warmup = values.warmup_fraction
  sizes = _sizes(values, chunk) if capacity.kind == "bytes" else None
  _check_writable(report_path)
  report = evaluation.simulate(
    trace,
    policy,
    capacity,
    eviction=values.eviction,
    warmup_fraction=warmup,
    sizes=sizes,
    state_share=state_share,
    progress=True,
  )
  evaluation.write_json(report_path, report)
  say(
    f"{report.placement}: {report.tokens_saved} of {report.tokens_total} prompt"
    f" tokens saved ({report.saved_fraction:.1%})\n{report.table()}"
  )


def _cost(text: str | None, depths: int) -> np.ndarray:
  """The cumulative cost [depths] that `--cost` names.

  Raises:
    ValueError: an unknown name, or a ratio that is no number >= 0 or too large.
  """
  kind, _, ratio = (text or "linear").partition(":")
  if kind == "linear" and not ratio:
    return placement.linear_cost(depths)
  if kind == "quadratic":
    try:
      number = float(ratio)
    except ValueError:
      number = -1.0
    if 0 <= number < float("inf"):
      return placement.quadratic_cost(depths, number)
  raise ValueError(
    f"--cost must be linear or quadratic:RATIO with RATIO >= 0, got {text}"
  )


def _load_histogram(path: Path) -> np.ndarray:
  """The weights in a NumPy file; `solve_placement` checks their values.

  Raises:
    ValueError: the file is no single NumPy array of plain numbers, or does not
      hold what it declares.
    OSError: it cannot be read.
  """
  with path.open("rb") as file:
    content = file.read(MAX_BYTES + 1)
  if len(content) > MAX_BYTES:
    raise ValueError(f"{path} has more than {MAX_BYTES} bytes")
  if zipfile.is_zipfile(path):
    raise ValueError(f"{path} holds several arrays, a .npy file is needed")
  try:
    return parse_npy(content)
  except ValueError as error:
    raise ValueError(f"{path} is no NumPy array file (.npy): {error}") from None


def _place(values: flags.FlagValues) -> None:
  """Prints the best positions for a histogram, as JSON."""
  weights = _load_histogram(Path(values.histogram))
  depths = len(np.atleast_1d(weights))
  cost = _cost(values.cost, depths)
  if not isinstance(values.budget, int):
    raise ValueError(f"--budget of place must be whole, got {values.budget}")
  # More positions than depths are of no use, and would take memory.
  budget = min(values.budget, depths)
  placed = placement.solve_placement(weights, budget, cost)
  positions = [p for p in placed.positions.tolist() if p > 0]
  mean = float(placed.expected_recompute)
  say(json.dumps({"positions": positions, "expected_recompute": mean}))


def _demo(values: flags.FlagValues) -> None:
  """Runs the demo, which needs the whole library and so is imported late.

  It prints its table before it compares the bits: a reader who has gone must
  not keep it from that, so what it prints is said afterwards.
  """
  printed = io.StringIO()
  try:
    with contextlib.redirect_stdout(printed):
      importlib.import_module("sparse_prefix_jax.demo").run_demo(values.out)
  finally:
    if text := printed.getvalue().rstrip("\n"):
      say(text)


def _memory_plan(values: flags.FlagValues) -> None:
  """Prints what fits into a memory; the models are imported late."""
  planner = importlib.import_module("sparse_prefix_jax.runtime.memory_plan")
  named = importlib.import_module("sparse_prefix_jax.models.named")
  config = named.named_config(
    values.preset,
    values.model,
    dtype=values.dtype,
    max_length=values.max_length,
  )
  if values.report is not None:
    _check_writable(Path(values.report))
  plan = planner.memory_plan(config, values.memory, progress=True)
  if values.report is not None:
    planner.write_plan(values.report, plan)
  say(plan.table())


_LAST_STEPS = 50


def _train(values: flags.FlagValues) -> None:
  """Trains a model on the recall task; what trains is imported late."""
  job = importlib.import_module("sparse_prefix_jax.training.job")
  report = job.train(values.out, steps=values.steps, seed=values.seed or 0)
  right = report["right"][-_LAST_STEPS:]
  say(
    f"{len(report['right'])} steps, {sum(right) / len(right):.1%} of the last"
    f" {len(right)} steps' answers right\nWritten: {values.out}"
  )


_COMMANDS: dict[str, Callable[[flags.FlagValues], None]] = {
  "demo": _demo,
  "simulate": _simulate,
  "place": _place,
  "memory_plan": _memory_plan,
  "train": _train,
}


# What a shell reports of a program that a closed pipe has ended.
_CLOSED_PIPE = 141

# What a shell reports of a program that Ctrl-C has ended.
_INTERRUPTED = 130

# Any other error is a bug of ours, which a traceback helps to find.
_BAD_INPUT = (
  ValueError,
  OSError,
  flags.Error,
  OverflowError,
  MemoryError,
  RecursionError,
)


def _dispatch(argv: Sequence[str]) -> None:
  """Runs the command of `argv`, or prints the help."""
  helps = [word for word in argv[1:] if word in ("--help", "-h", "-help")]
  if helps or list(argv[1:2]) == ["help"]:
    say(help_text())
    return
  command, values = parse(argv)
  _COMMANDS[command](values)


def run(argv: Sequence[str]) -> int:
  """Runs one command.

  Args:
    argv: program name, command and flags.

  Returns:
    Exit status: 0, also where nobody reads to its end what is printed; 2 after
    bad input or an unwritable output, 1 if the demo finds a bit that differs,
    both told in one sentence on stderr; 130 if it was interrupted; 141, as of a
    program that a closed pipe ends, if the work was not done when its progress
    could not be shown.
  """
  try:
    _dispatch(argv)
  except BrokenPipeError:
    hush(sys.stderr)
    return _CLOSED_PIPE
  except KeyboardInterrupt:
    tell("interrupted.")
    return _INTERRUPTED
  except _BAD_INPUT as error:
    tell(sentence_of(error))
    return 2
  except ContractError as error:
    tell(sentence_of(error))
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(run(sys.argv))
