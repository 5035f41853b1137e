"""The flags of all commands: what each takes, needs and means."""

import contextlib
import math
from collections.abc import Sequence

from absl import flags

from sparse_prefix_jax import evaluation, placement, workloads
from sparse_prefix_jax.kinds import brief

_USAGE = "usage: python -m sparse_prefix_jax"
_USES = {
  "demo": (
    "--out=DIR",
    "serve requests that share documents under every strategy, and compare",
  ),
  "simulate": (
    "--requests=FILE --capacity=KIND:AMOUNT --report=OUT.json [...]",
    "replay a request stream without a model",
  ),
  "place": (
    "--histogram=FILE.npy --budget=M [--cost=linear|quadratic:RATIO]",
    "print the best positions for a histogram of overlap depths",
  ),
  "memory_plan": (
    "--preset=NAME|--model=DIR --memory=24GiB [--dtype=bfloat16] [...]",
    "count what fits into a device's memory: weights, programs, sequences",
  ),
  "train": (
    "--out=DIR --steps=N [--seed=N]",
    "train a small hybrid to recall facts; an interrupted one goes on",
  ),
  "generate": (
    "[--model=DIR] [--prompt=TEXT] [--temperature=T] [...]",
    "continue a text, or talk: a line of stdin is a message, Ctrl-D ends it",
  ),
  "serve": (
    "[--model=DIR] [--port=8000] [--api_keys=FILE] [...]",
    "answer many clients over HTTP, in the form of OpenAI's interface",
  ),
}

_COMMAND_FLAGS = {
  "demo": ("out",),
  "simulate": (
    "requests",
    "capacity",
    "placement",
    "budget",
    "eviction",
    "block_size",
    "time_unit",
    "skip_bad_lines",
    "warmup_fraction",
    "interleave_seed",
    "preset",
    "model",
    "dtype",
    "page_dtype",
    "state_share",
    "report",
    "plot",
  ),
  "place": ("histogram", "budget", "cost"),
  "train": ("out", "steps", "seed"),
  "memory_plan": (
    "preset",
    "model",
    "memory",
    "dtype",
    "page_dtype",
    "max_length",
    "report",
  ),
  "generate": (
    "model",
    "prompt",
    "system",
    "max_tokens",
    "stop",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "capacity",
    "dtype",
    "page_dtype",
    "max_length",
  ),
  "serve": (
    "model",
    "host",
    "port",
    "api_keys",
    "max_running",
    "max_waiting",
    "token_budget",
    "warm_up",
    "capacity",
    "placement",
    "budget",
    "eviction",
    "state_share",
    "dtype",
    "page_dtype",
    "max_length",
  ),
}
_REQUIRED = {
  "demo": ("out",),
  "simulate": ("requests", "capacity", "report"),
  "place": ("histogram", "budget"),
  "memory_plan": ("memory",),
  "train": ("out", "steps"),
  "generate": (),
  "serve": (),
}

SEED, WARMUP = 42, 0.6
"""What token files have unless told otherwise: the paper interleaves its
streams with this seed, and warms the cache with 60 % of them."""


class _Number(flags.ArgumentParser):
  """Integers stay integers; `conditional` takes fractions as well."""

  def parse(self, argument: str | int | float) -> int | float:
    """Reads a number that is finite.

    Raises:
      ValueError: the argument is none; absl adds the name of the flag.
    """
    try:
      return int(argument)
    except ValueError:
      number = float(argument)
    if not math.isfinite(number):
      raise ValueError(f"{argument} is no finite number")
    return number

  def flag_type(self) -> str:
    """The word that the help has for such a value."""
    return "number"


_TEXTS = {
  "out": "Folder for what is written: report.json and pareto.png (demo),"
  " checkpoint, weights, tokenizer and curve (train).",
  "requests": "Token file (.npz) or Mooncake trace (.jsonl, .gz, .xz), a line"
  " of which has hash_ids and input_length.",
  "capacity": "sequences:N, states:K or bytes:SIZE, such as bytes:4GiB;"
  " a size for generate (default 256MiB) and serve (default 1GiB).",
  "placement": f"One of {', '.join(placement.PLACEMENTS)} (default"
  " last for sequences and beside --eviction=lru or fifo, else adaptive).",
  "eviction": f"One of {', '.join(evaluation.EVICTIONS)} (default fifo for"
  " sequences, lru otherwise; sequences and states have these two alone;"
  " adaptive evicts by its own index).",
  "preset": "Model whose sizes count for bytes (simulate: by default"
  " qwen3_5_0_8b).",
  "model": "Folder of a model; only its config.json is read, but by generate"
  " and serve, which answer with the model of the demo where none is named.",
  "memory": "Bytes of the device that may be used, such as 24GiB.",
  "dtype": "float32 or bfloat16 (default: that of the preset or folder).",
  "page_dtype": "int8 quantises the keys and values of completed chunks"
  " (default: they stay in the dtype).",
  "state_share": "Share of a capacity in bytes that states have: a number in"
  " (0, 1), or for simulate undivided (default: it follows the requests).",
  "report": "JSON file to write.",
  "plot": "PNG file to draw: overlap depths with the positions of states over"
  " them, and what was saved over time against what could be. It needs the"
  " extra plot.",
  "histogram": "NumPy file (.npy) with the weights of the overlap depths.",
  "cost": "linear or quadratic:RATIO (default linear).",
  "prompt": "Text to continue; without it, a conversation.",
  "system": "First message of a conversation.",
  "host": "Address to listen at (default 127.0.0.1, this machine alone).",
  "api_keys": "File with an API key in each line; callers with different keys"
  " share no states (default: whoever reaches the address may ask).",
  "stop": "Text before which an answer ends.",
}
_INTEGERS = {
  "block_size": "Tokens per block of a trace whose name does not say it"
  f" (default {workloads.DEFAULT_BLOCK}).",
  "max_length": "Longest sequence in tokens (default: that of the preset or"
  " folder).",
  "steps": "Steps of a training, which its rate depends on.",
  "seed": "What weights and documents, or ids, are drawn from (default 0).",
  "max_tokens": "Most tokens of an answer (default 256; 1 with the demo's).",
  "port": "Port to listen at, 0 for any free one (default 8000).",
  "max_running": "Most requests that run at once (default 64).",
  "max_waiting": "Most requests that wait besides; more are told to come again"
  " (default 256).",
  "token_budget": "Most tokens of prompts per step (default 512).",
  "top_k": "How many of the most probable ids are kept (default all).",
  "interleave_seed": f"Order of a token file (default {SEED}); -1 keeps it.",
}


_FLOATS = {
  "warmup_fraction": f"Share of the requests not measured (default {WARMUP} for"
  " token files, 0 for traces).",
  "temperature": "0 takes the most probable id (default 0).",
  "top_p": "Which share of the probability is kept (default 1).",
  "min_p": "Least probability that is kept, as a share of the largest"
  " (default 0).",
}


def _define_flags() -> flags.FlagValues:
  """Flags of all commands, unset unless given."""
  values = flags.FlagValues()
  budget = (
    "What it means for each placement: "
    + "; ".join(f"{n}: {m}" for n, m in placement.PLACEMENTS.items() if m)
    + ". For place: number of positions."
  )
  for name, meaning in _TEXTS.items():
    flags.DEFINE_string(name, None, meaning, flag_values=values)
  for name, meaning in _INTEGERS.items():
    flags.DEFINE_integer(name, None, meaning, flag_values=values)
  for name, meaning in _FLOATS.items():
    flags.DEFINE_float(name, None, meaning, flag_values=values)
  flags.DEFINE_enum(
    "time_unit",
    None,
    list(workloads.TIME_UNITS),
    "Unit of the timestamps of a trace (default ms, or s where they are no"
    " whole numbers).",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "skip_bad_lines",
    None,
    "Leave out the lines of a trace that hold no request, and count them.",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "warm_up",
    None,
    "Compile what requests need before the address is told (default true).",
    flag_values=values,
  )
  flags.DEFINE(_Number(), "budget", None, budget, flag_values=values)
  return values


def parse(argv: Sequence[str]) -> tuple[str, flags.FlagValues]:
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
    if values[name].value == "":
      raise ValueError(f"--{name} must not be empty")
  for name in _REQUIRED[command]:
    if name not in given:
      raise ValueError(f"{command} needs --{name}")
  return command, values


def share_in(text: str, *, others: str = "") -> float:
  """Reads `--state_share` where it is a number.

  Args:
    text: What was given.
    others: What else could have been given, for the sentence that refuses.

  Returns:
    The share of a capacity that states have.

  Raises:
    ValueError: the text is no number in (0, 1).
  """
  with contextlib.suppress(ValueError):
    if 0 < float(text) < 1:
      return float(text)
  raise ValueError(
    f"--state_share must be {others}a number in (0, 1), got {brief(text)}"
  )


def help_text(words: Sequence[str] = ()) -> str:
  """Says what a command does and takes, or what commands there are.

  Args:
    words: What was given besides the wish for help.

  Returns:
    The flags of the command among the words, and no others; without one, how
    each command is called.

  >>> help_text(["place"]).splitlines()[0]
  'usage: python -m sparse_prefix_jax place [flags]'
  """
  command = next((word for word in words if word in _USES), None)
  if command is None:
    uses = "\n".join(map(_use_of, _USES))
    more = "`COMMAND --help` lists the flags of a command.\n"
    return f"{_USAGE} COMMAND [flags]\n\n{uses}\n\n{more}"
  values = _define_flags()
  for name in {*values} - {*_COMMAND_FLAGS[command]}:
    delattr(values, name)
  # The name of this module stands above all of them.
  listed = values.get_help(include_special_flags=False).partition(":\n")[2]
  head = f"{_USAGE} {command} [flags]\n\n{_use_of(command)}\n\nflags:\n"
  return head + listed


def _use_of(command: str) -> str:
  """How a command is called, and what it does."""
  takes, does = _USES[command]
  return f"  {command} {takes}\n      {does}"
