"""Command line: `python -m sparse_prefix_jax demo | simulate | place`.

Bad input is answered with one sentence on stderr and exit status 2, never with
a traceback. DESIGN section 7 describes the commands; `--help` the flags.
"""

import importlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from sparse_prefix_jax import evaluation, placement, workloads
from sparse_prefix_jax.contract import ContractError

_USAGE = """usage: python -m sparse_prefix_jax COMMAND [flags]

  demo --out=DIR
      serve requests that share documents under every strategy, and compare
  simulate --requests=FILE --capacity=KIND:AMOUNT --report=OUT.json [...]
      replay a request stream without a model
  place --histogram=FILE.npy --budget=M [--cost=linear|quadratic:RATIO]
      print the best positions for a histogram of overlap depths

flags:
"""

_COMMAND_FLAGS = {
  "demo": ("out",),
  "simulate": (
    "requests",
    "capacity",
    "placement",
    "budget",
    "eviction",
    "block_size",
    "warmup_fraction",
    "interleave_seed",
    "preset",
    "report",
  ),
  "place": ("histogram", "budget", "cost"),
}
_REQUIRED = {
  "demo": ("out",),
  "simulate": ("requests", "capacity", "report"),
  "place": ("histogram", "budget"),
}

# The paper interleaves its streams, and warms the cache with 60 % of them.
_SEED, _WARMUP = 42, 0.6


class _Number(flags.ArgumentParser):
  """Integers stay integers; `conditional` takes fractions as well."""

  def parse(self, argument: str | int | float) -> int | float:
    """A number.

    Raises:
      ValueError: it is none; absl adds the name of the flag.
    """
    try:
      return int(argument)
    except ValueError:
      return float(argument)

  def flag_type(self) -> str:
    """What the help calls it."""
    return "number"


def _define_flags() -> flags.FlagValues:
  """Flags of all commands, unset unless given."""
  values = flags.FlagValues()
  text = {
    "out": "Folder for report.json and pareto.png.",
    "requests": "Token file (.npz) or Mooncake trace (.jsonl, .gz, .xz).",
    "capacity": "sequences:N, states:K or bytes:SIZE, such as bytes:4GiB.",
    "placement": f"One of {', '.join(placement.POLICIES)} (default last).",
    "eviction": f"One of {', '.join(evaluation.EVICTIONS)} (default fifo for"
    " sequences, lru otherwise).",
    "preset": "Model whose sizes count for bytes (default qwen3_5_0_8b).",
    "report": "JSON file to write.",
    "histogram": "NumPy file (.npy) with the weights of the overlap depths.",
    "cost": "linear or quadratic:RATIO (default linear).",
  }
  budget = (
    "What it means for each placement: "
    + "; ".join(f"{n}: {m}" for n, m in placement.POLICIES.items() if m)
    + ". For place: number of positions."
  )
  integers = {
    "block_size": "Tokens per block of a trace whose name does not say it"
    f" (default {workloads.DEFAULT_BLOCK}).",
    "interleave_seed": f"Order of a token file (default {_SEED}); -1 keeps it.",
  }
  for name, meaning in text.items():
    flags.DEFINE_string(name, None, meaning, flag_values=values)
  for name, meaning in integers.items():
    flags.DEFINE_integer(name, None, meaning, flag_values=values)
  flags.DEFINE(_Number(), "budget", None, budget, flag_values=values)
  flags.DEFINE_float(
    "warmup_fraction",
    None,
    f"Share of the requests not measured (default {_WARMUP} for token files,"
    " 0 for traces).",
    flag_values=values,
  )
  return values


def _parse(argv: Sequence[str]) -> tuple[str, flags.FlagValues]:
  """Splits the command line.

  Args:
    argv: program name, command and flags.

  Returns:
    The command, and the values of all flags (None where not given).

  Raises:
    ValueError: no such command, a flag of another command, or one missing.
    flags.Error: an unknown flag, or a value of the wrong type.
  """
  values = _define_flags()
  words = values(list(argv))[1:]
  if len(words) != 1 or words[0] not in _COMMAND_FLAGS:
    raise ValueError(
      f"command must be one of {', '.join(_COMMAND_FLAGS)}, got"
      f" {' '.join(words) or 'nothing'} (--help shows how)"
    )
  command = words[0]
  given = [name for name in values if values[name].present]
  for name in given:
    if name not in _COMMAND_FLAGS[command]:
      raise ValueError(f"--{name} is no flag of {command}")
  for name in _REQUIRED[command]:
    if name not in given:
      raise ValueError(f"{command} needs --{name}")
  return command, values


def _check_writable(path: Path) -> None:
  """Raises OSError before long work if a file could not be written."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.is_dir() or not os.access(path.parent, os.W_OK):
    raise OSError(f"cannot write {path}")


def _load_trace(values: flags.FlagValues) -> tuple[workloads.Trace, float]:
  """Reads the request stream that the flags name.

  Token files are interleaved as in the paper; traces keep their order in time.

  Returns:
    The stream in the order of serving, and the warm-up it has by default.

  Raises:
    ValueError: an unknown kind of file, a malformed one, or a flag that does
      not go with it.
    FileNotFoundError: there is no such file.
  """
  path = Path(values.requests)
  if path.suffix == ".npz":
    if values.block_size is not None:
      raise ValueError("--block_size is for traces, not for token files")
    trace = workloads.load_token_file(path)
    seed = _SEED if values.interleave_seed is None else values.interleave_seed
    if not -1 <= seed < 2**32:
      raise ValueError(
        f"--interleave_seed must be -1 or in [0, 2**32), got {seed}"
      )
    return (trace if seed == -1 else workloads.interleave(trace, seed)), _WARMUP
  if ".jsonl" not in path.suffixes:
    raise ValueError(
      f"--requests must end in .npz, .jsonl, .jsonl.gz or .jsonl.xz, got {path}"
    )
  if values.interleave_seed is not None:
    raise ValueError(
      "--interleave_seed is for token files; traces are replayed in order"
    )
  return workloads.load_mooncake(path, values.block_size), 0.0


def _sizes(name: str, chunk: int) -> evaluation.Sizes:
  """Bytes of a state and of a page of `chunk` tokens, for a preset.

  Models are imported here, so that the other capacities and `place` start fast.

  Raises:
    ValueError: there is no such preset.
  """
  models = importlib.import_module("sparse_prefix_jax.models")
  sizes = importlib.import_module("sparse_prefix_jax.models.sizes")
  config = models.preset(name)
  pages = sizes.page_bytes(config) * chunk
  return evaluation.Sizes(sizes.state_bytes(config), pages // config.chunk)


def _simulate(values: flags.FlagValues) -> None:
  """Replays a stream, writes the report and prints one line."""
  report_path = Path(values.report)
  capacity = evaluation.parse_capacity(values.capacity)
  if values.preset is not None and capacity.kind != "bytes":
    raise ValueError("--preset is for a capacity in bytes")
  trace, warmup = _load_trace(values)
  chunk = placement.CHUNK if trace.block == 1 else trace.block
  policy = placement.PlacementPolicy(
    values.placement or "last", values.budget, chunk=chunk
  )
  sizes = None
  if capacity.kind == "bytes":
    sizes = _sizes(values.preset or "qwen3_5_0_8b", chunk)
  if values.warmup_fraction is not None:
    warmup = values.warmup_fraction
  _check_writable(report_path)
  report = evaluation.simulate(
    trace,
    policy,
    capacity,
    eviction=values.eviction,
    warmup_fraction=warmup,
    sizes=sizes,
    progress=True,
  )
  evaluation.write_json(report_path, report)
  print(
    f"{report.placement}: {report.tokens_saved} of {report.tokens_total} prompt"
    f" tokens saved ({report.saved_fraction:.1%}), reusable"
    f" {report.reusable_tokens}, states per entry"
    f" {report.state_checkpoints_per_entry:.2f}, states at most"
    f" {report.state_checkpoints_peak}"
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
    ValueError: the file is no single NumPy array, or memory cannot hold it.
    OSError: it cannot be read.
  """
  try:
    with path.open("rb") as file:
      weights = np.load(file, allow_pickle=False)
  except (ValueError, EOFError, zipfile.BadZipFile):
    raise ValueError(f"{path} is no NumPy array file (.npy)") from None
  except (MemoryError, OverflowError):
    raise ValueError(
      f"{path} names an array that is too large for memory, or is damaged"
    ) from None
  if not isinstance(weights, np.ndarray):
    raise ValueError(f"{path} holds several arrays, a .npy file is needed")
  return weights


def _place(values: flags.FlagValues) -> None:
  """Prints the best positions for a histogram, as JSON."""
  weights = _load_histogram(Path(values.histogram))
  depths = len(np.atleast_1d(weights))
  cost = _cost(values.cost, depths)
  # More positions than depths are of no use, and would take memory.
  budget = min(values.budget, depths)
  placed = placement.solve_placement(weights, budget, cost)
  positions = [p for p in placed.positions.tolist() if p > 0]
  mean = float(placed.expected_recompute)
  print(json.dumps({"positions": positions, "expected_recompute": mean}))


def _demo(values: flags.FlagValues) -> None:
  """Runs the demo, which needs the whole library and so is imported late."""
  importlib.import_module("sparse_prefix_jax.demo").run(values.out)


_COMMANDS: dict[str, Callable[[flags.FlagValues], None]] = {
  "demo": _demo,
  "simulate": _simulate,
  "place": _place,
}


def _sentence(error: Exception) -> str:
  """What went wrong, on one line."""
  text = str(error) or type(error).__name__
  if isinstance(error, OSError) and error.strerror:
    name = "" if error.filename is None else f": {error.filename}"
    text = error.strerror + name
  elif isinstance(error, MemoryError | OverflowError | RecursionError):
    text = f"the input is too large: {text}"
  # Nobody reads a number of thousands of digits.
  short = re.sub(r"\d{40,}", lambda m: f"{m[0][:10]}... (long)", text)
  return " ".join(short.split())


# Any other error is a bug of ours, which a traceback helps to find.
_BAD_INPUT = (
  ValueError,
  OSError,
  flags.Error,
  OverflowError,
  MemoryError,
  RecursionError,
)


def run(argv: Sequence[str]) -> int:
  """Runs one command.

  Args:
    argv: program name, command and flags.

  Returns:
    Exit status: 0; 2 after bad input or an unwritable output, 1 if the demo
    finds a bit that differs, told in one sentence on stderr.
  """
  helps = [word for word in argv[1:] if word in ("--help", "-h", "-help")]
  if helps or list(argv[1:2]) == ["help"]:
    print(_USAGE + _define_flags().get_help())
    return 0
  try:
    command, values = _parse(argv)
    _COMMANDS[command](values)
  except _BAD_INPUT as error:
    print(f"sparse_prefix_jax: {_sentence(error)}", file=sys.stderr)
    return 2
  except ContractError as error:
    print(f"sparse_prefix_jax: {_sentence(error)}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(run(sys.argv))
