"""What fits into a device's memory: weights, programs, states and pages."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from sparse_prefix_jax.byte_sizes import parse_bytes, readable_bytes
from sparse_prefix_jax.kinds import check_flag
from sparse_prefix_jax.models.config import ModelConfig, check_config_kind
from sparse_prefix_jax.models.sizes import (
  check_kept_bytes,
  page_bytes,
  state_bytes,
)
from sparse_prefix_jax.runtime import programs, shapes
from sparse_prefix_jax.runtime.pools import copy_sequence

_LENGTHS = (1 << 10, 8 << 10, 32 << 10, 128 << 10)
# What a program needs beside the pools does not depend on their size: it
# updates them in place. But XLA computes bfloat16 in float32 on a CPU and
# copies pools of it, so they are as small as can be.
_SLOTS, _PAGES = 4, 8
# A sequence needs two; the third can be missed, but who has it holds it until
# an answer completes a chunk.
_RUNNING_STATES = 3


class LengthPlan(NamedTuple):
  """How many sequences of one length the cache holds, running or stored.

  Attributes:
    length: Tokens of every sequence.
    running_bytes: Bytes of one running sequence: two states, a third one that
      its placement stores at the last whole chunk of its prompt and that it
      holds until its answer completes a further one, and a page for each chunk
      that it has begun.
    running: How many run at once when nothing else is held; more where they
      share that state or store none.
    state_share: Share of `running_bytes` that states take; the rest is pages.
    stored_bytes: Bytes of one stored prefix that keeps one state: the state,
      and a page for each whole chunk.
    stored: How many prefixes that share nothing are stored when nothing runs.
  """

  length: int
  running_bytes: int
  running: int
  state_share: float
  stored_bytes: int
  stored: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
  """Where the bytes of a device go when a model is served from it.

  Attributes:
    config: The model's configuration.
    platform: The platform that the programs were compiled for: "cpu", "gpu" or
      "tpu". `programs` and `temporary_bytes` are those of its compiler.
    memory_bytes: All bytes that may be used.
    weights_bytes: Bytes of the parameters.
    programs: Name and bytes of each compiled program: its temporaries, and its
      results other than the pools, which it updates in place.
    temporary_bytes: Bytes of the largest of them; programs run one at a time.
    cache_bytes: What is left for states and pages: the `capacity` to give to
      `PrefixCache`.
    state_bytes: Bytes of one state checkpoint, all branches together.
    page_bytes: Bytes of what is kept of one chunk, all branches together.
    lengths: How many sequences fit, for each of several lengths.
  """

  config: ModelConfig
  platform: str
  memory_bytes: int
  weights_bytes: int
  programs: tuple[tuple[str, int], ...]
  temporary_bytes: int
  cache_bytes: int
  state_bytes: int
  page_bytes: int
  lengths: tuple[LengthPlan, ...]

  def to_json(self) -> dict[str, Any]:
    """All figures under the names of the attributes, ready for JSON."""
    lengths = [row._asdict() for row in self.lengths]
    figures = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    return figures | {
      "config": self.config.to_json(),
      "programs": dict(self.programs),
      "lengths": lengths,
    }

  def table(self) -> str:
    """The plan as aligned text, in units that people read."""
    name, _ = max(self.programs, key=lambda program: program[1])
    numerics = self.config.numerics
    chunk = f"one page of {numerics.chunk} tokens"
    chunk += f" in {numerics.page_dtype}" if numerics.page_dtype else ""
    parts = [
      (f"memory ({numerics.dtype} model)", self.memory_bytes),
      ("weights", self.weights_bytes),
      (f"largest program on {self.platform}: {name}", self.temporary_bytes),
      ("left for the cache", self.cache_bytes),
      ("one state", self.state_bytes),
      (chunk, self.page_bytes),
    ]
    lines = [f"{what:46}{readable_bytes(size):>12}" for what, size in parts]
    lines += ["", _HEADING, *map(_line, self.lengths)]
    return "\n".join(lines)


_HEADING = (
  f"{'tokens':>8}{'run at once':>13}{'bytes each':>13}"
  f"{'share of states':>17}{'or are stored':>15}{'bytes each':>13}"
)


def _line(row: LengthPlan) -> str:
  """One line under `_HEADING`."""
  running = readable_bytes(row.running_bytes)
  stored = readable_bytes(row.stored_bytes)
  return (
    f"{row.length:8,}{row.running:13,}{running:>13}"
    f"{row.state_share:17.0%}{row.stored:15,}{stored:>13}"
  )


def memory_plan(
  config: ModelConfig, memory: int | str, *, progress: bool = False
) -> MemoryPlan:
  """Counts what a model needs in a device's memory, and what then fits.

  Nothing is allocated: weights and pools are counted from their shapes, and the
  programs that serve are compiled from shapes, which takes seconds, or about a
  minute for a model of 24 layers.

  Counts of penalties are left out: 4 bytes per id and request that may run,
  once somebody asks for one. And four things cannot be known without the device
  that will serve. Temporaries are those of the compiler of JAX's default
  device: a plan made on a CPU says little of a GPU's, and leaves out that
  programs in bfloat16 copy pools on a CPU. What the driver takes, and what an
  allocator loses between buffers, is not counted. JAX itself takes three
  quarters of a GPU's memory unless `XLA_PYTHON_CLIENT_MEM_FRACTION` says
  otherwise; `memory` should be what it takes. And a TPU pads pools of heads of
  64 to twice their bytes.

  Args:
    config: The model's configuration, from `preset` or `read_config`.
    memory: Bytes that may be used: a number, or a text such as "24GiB".
    progress: Whether to show a bar on stderr while programs are compiled.

  Returns:
    All figures, in bytes and counts.

  Raises:
    ValueError: If `config` is no `ModelConfig` or of a model that keeps nothing
      of a prompt, or if `memory` is no size above 0, or too small for the
      weights, the largest program and a sequence of one page.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> config = preset("tiny", ladder=(1,), max_length=1024)
    >>> plan = memory_plan(config, "64MiB")
    >>> plan.weights_bytes, plan.state_bytes, plan.page_bytes
    (597664, 19456, 32768)
    >>> plan.lengths[0].length, plan.lengths[0].running_bytes
    (1024, 582656)
  """
  check_config_kind(config)
  check_flag("progress", progress)
  check_kept_bytes(config)
  total, weights = parse_bytes(memory, name="memory"), weights_bytes(config)
  _check_memory(config, total, weights, None)
  sizes = tuple(_program_bytes(config, progress))
  temporary = max(size for _, size in sizes)
  _check_memory(config, total, weights, temporary)
  cache = total - weights - temporary
  return MemoryPlan(
    config=config,
    platform=jax.default_backend(),
    memory_bytes=total,
    weights_bytes=weights,
    programs=sizes,
    temporary_bytes=temporary,
    cache_bytes=cache,
    state_bytes=state_bytes(config),
    page_bytes=page_bytes(config),
    lengths=tuple(_length(config, cache, n) for n in _lengths(config)),
  )


def weights_bytes(config: ModelConfig) -> int:
  """Bytes of a model's parameters, counted from their shapes.

  Args:
    config: The model's configuration.

  Returns:
    The sum over all parameters.

  Raises:
    ValueError: If `config` is no `ModelConfig`.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> weights_bytes(preset("tiny"))
    597664
  """
  check_config_kind(config)
  leaves = shapes.model_shapes(config).leaves
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _program_bytes(
  config: ModelConfig, progress: bool
) -> Iterator[tuple[str, int]]:
  """Name and bytes of each program, compiled one after another.

  Raises:
    ValueError: If the compiler does not tell what its programs need.
  """
  lowered = _lowered(config)
  count = len(config.numerics.ladder) + 3
  hidden = not progress
  for name, program in tqdm(lowered, "compiling", count, disable=hidden):
    memory = program.compile().memory_analysis()
    if memory is None:
      raise ValueError(
        f"the compiler for {jax.default_backend()} does not say how much "
        "memory its programs take, so no plan can be made with it."
      )
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    yield name, memory.temp_size_in_bytes + fresh


def _lowered(config: ModelConfig) -> Iterator[tuple[str, jax.stages.Lowered]]:
  """Every program that serves, from shapes: the rungs, decode, head, fork."""
  model = shapes.model_shapes(config)
  pools = shapes.pool_shapes(config, slots=_SLOTS, pages=_PAGES)
  for rung in config.numerics.ladder:
    chunks = "chunk" if rung == 1 else "chunks"
    group = shapes.group_shapes(config, rung)
    prefill = programs.prefill_group.lower(model, pools, group)
    yield f"prefill of {rung} {chunks}", prefill
  step = shapes.step_shapes(config)
  yield "decode", programs.decode_step.lower(model, pools, step)
  yield "head", programs.head.lower(model, shapes.hidden_shape(config))
  yield "fork", copy_sequence.lower(pools, *shapes.fork_shapes())


def _check_memory(
  config: ModelConfig, total: int, weights: int, temporary: int | None
) -> None:
  """Refuses a memory without room for one sequence of one page.

  Args:
    config: The model's configuration.
    total: Bytes that may be used.
    weights: Bytes of the parameters.
    temporary: Bytes of the largest program, or None while it is not known: the
      weights alone may be too much, which is told before minutes of compiling.
  """
  state, page = state_bytes(config), page_bytes(config)
  least = weights + (temporary or 0) + 2 * state + page
  if total >= least:
    return
  program = (
    "" if temporary is None else f" {temporary} for the largest program,"
  )
  raise ValueError(
    f"memory is {total} bytes, and {least} are needed at least: {weights} for "
    f"the weights,{program} and two states of {state} and one page of {page} "
    "for a sequence."
  )


def _lengths(config: ModelConfig) -> list[int]:
  """The lengths of the table: round ones, and the longest sequence."""
  longest = config.numerics.max_length
  return [*(length for length in _LENGTHS if length < longest), longest]


def _length(config: ModelConfig, cache: int, length: int) -> LengthPlan:
  """The line of the table for sequences of one length."""
  state, page = state_bytes(config), page_bytes(config)
  running = _RUNNING_STATES * state + -(-length // config.numerics.chunk) * page
  stored = state + length // config.numerics.chunk * page
  return LengthPlan(
    length=length,
    running_bytes=running,
    running=cache // running,
    state_share=_RUNNING_STATES * state / running,
    stored_bytes=stored,
    # Without recurrent layers, less than a chunk leaves nothing to store.
    stored=cache // stored if stored else 0,
  )
