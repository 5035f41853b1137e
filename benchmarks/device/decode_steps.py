"""One token of many sequences: how far each step is from memory bandwidth.

    python -m benchmarks.device.decode_steps --output=FILE.json

Steps of the recurrences read a state and write it; attention reads all keys and
values of a sequence. The shapes are those of a layer of Qwen3.5-0.8B, of Kimi
Linear's and Mamba-2's forms, its latents, and of a window of the convolution.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.command_line import one_sentence, whole_numbers, writable
from benchmarks.device.copying import bandwidth
from benchmarks.device.kernel_times import kernel_seconds
from benchmarks.record import write_result
from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d_step
from sparse_prefix_jax.kernels.gated_delta_rule import gated_delta_rule_step
from sparse_prefix_jax.kernels.kimi_delta_attention import (
  kimi_delta_attention_step,
)
from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  latent_attention_step,
  lattice_attention_step,
)
from sparse_prefix_jax.kernels.linear_attention import linear_attention_step

_ROWS = flags.DEFINE_list("rows", ["1", "16", "64"], "Sequences.")
_CONTEXT = flags.DEFINE_integer("context", 8192, "Tokens before.", 64)
_HEADS = flags.DEFINE_integer("heads", 16, "Value heads.", 1)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps of a program.", 1)
_CALLS = flags.DEFINE_integer("calls", 5, "Programs of a turn.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed turns.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_CHUNK, _KEY = 64, 128


class Step(NamedTuple):
  """A step: `run(inputs, pools)` -> (out, pools), pools donated.

  Attributes:
    run: The operation.
    inputs: Arrays.
    pools: Arrays, one slot or as many pages as it has per row.
    moved: The bytes that have to come and go.
  """

  run: Callable[..., Any]
  inputs: Any
  pools: Any
  moved: int


def _normal(seed: int, *shape: int, dtype: str = "bfloat16") -> jax.Array:
  random = np.random.default_rng(seed)
  return jnp.asarray(random.standard_normal(shape, np.float32), dtype)


def _matrix(operation: Callable[..., Any], rows: int, *gates: Any) -> Step:
  heads = _HEADS.value
  key = _normal(0, rows, heads, _KEY)
  pool = _normal(1, rows, heads, _KEY, _KEY, dtype="float32")
  slots = jnp.arange(rows, dtype=jnp.int32)

  def run(inputs: Any, pools: Any) -> Any:
    out, pool = operation(*inputs, *pools, slots, slots)
    return out, (pool,)

  return Step(run, (key, key, key, *gates), (pool,), 2 * pool.nbytes)


def _attention(rows: int, window: int | None) -> Step:
  heads, context = _HEADS.value, _CONTEXT.value
  kv_heads = max(1, heads // 8)
  pages = -(-context // _CHUNK)
  shape = rows * pages, _CHUNK, kv_heads, _KEY
  pools = _normal(0, *shape), _normal(1, *shape)
  table = _table(rows, pages)
  position = jnp.full(rows, context - 1, jnp.int32)
  active = jnp.ones(rows, jnp.bool_)
  inputs = (
    _normal(2, rows, heads, _KEY),
    *(_normal(seed, rows, kv_heads, _KEY) for seed in (3, 4)),
  )

  def run(inputs: Any, pools: Any) -> Any:
    out, *pools = lattice_attention_step(
      *(*inputs, *pools, position, active, table), window=window
    )
    return out, tuple(pools)

  read = min(context, window or context)
  return Step(run, inputs, pools, 4 * rows * read * kv_heads * _KEY)


def _latents(rows: int) -> Step:
  """The published widths of Kimi Linear."""
  heads, width, values = 32, 576, 512
  context = _CONTEXT.value
  pages = -(-context // _CHUNK)
  table = _table(rows, pages)
  pool = _normal(0, rows * pages, _CHUNK, 1, width)
  position = jnp.full(rows, context - 1, jnp.int32)
  active = jnp.ones(rows, jnp.bool_)
  inputs = _normal(2, rows, heads, width), _normal(3, rows, 1, width)

  def run(inputs: Any, pools: Any) -> Any:
    out, pool = latent_attention_step(
      *(*inputs, *pools, position, active, table), value_width=values
    )
    return out, (pool,)

  return Step(run, inputs, (pool,), 2 * rows * context * width)


def _table(rows: int, pages: int) -> jax.Array:
  """Each row has pages of its own, in order; it is as wide as kernels ask."""
  wide = -(-(pages + 1) // BLOCK_PAGES) * BLOCK_PAGES
  table = np.zeros((rows, wide), np.int32)
  table[:, :pages] = np.arange(rows * pages).reshape(rows, pages)
  return jnp.asarray(table)


def _convolution(rows: int) -> Step:
  channels = 3 * _KEY * _HEADS.value
  x, weight = _normal(0, rows, channels), _normal(1, 4, channels)
  pool = _normal(2, rows, 3, channels)
  slots = jnp.arange(rows, dtype=jnp.int32)

  def run(inputs: Any, pools: Any) -> Any:
    out, pool = causal_conv1d_step(*(*inputs, *pools, slots, slots))
    return out, (pool,)

  return Step(run, (x, weight), (pool,), 2 * pool.nbytes + 2 * x.nbytes)


def steps(rows: int) -> dict[str, Step]:
  """Every step at that many rows, by name."""
  heads = _HEADS.value
  decay = -jnp.abs(_normal(5, rows, heads, dtype="float32"))
  channels = -jnp.abs(_normal(5, rows, heads, _KEY, dtype="float32"))
  beta = jax.nn.sigmoid(_normal(6, rows, heads, dtype="float32"))
  return {
    "gated_delta_rule": _matrix(gated_delta_rule_step, rows, decay, beta),
    "kimi_delta_attention": _matrix(
      kimi_delta_attention_step, rows, channels, beta
    ),
    "linear_attention": _matrix(linear_attention_step, rows, decay),
    "causal_conv1d": _convolution(rows),
    "lattice_attention": _attention(rows, None),
    "lattice_attention, window 512": _attention(rows, 512),
    "latent_attention": _latents(rows),
  }


def _seconds(step: Step) -> tuple[float, float]:
  """Seconds of one step of several in one program, and of its kernels alone.

  A program of one step would time its launch by the host.
  """

  def several(inputs: Any, pools: Any) -> tuple[Any, Any]:
    def again(_: Any, before: tuple[Any, Any]) -> tuple[Any, Any]:
      return step.run(inputs, before[1])

    # A loop: written out, every step's kernel would be compiled by itself.
    first = step.run(inputs, pools)
    return jax.lax.fori_loop(1, _STEPS.value, again, first)

  run = jax.jit(several, donate_argnums=1)
  held, times, count = {"pools": step.pools}, [], _CALLS.value * _STEPS.value

  def turn() -> Any:
    for _ in range(_CALLS.value):
      _, held["pools"] = run(step.inputs, held["pools"])
    return jax.block_until_ready(held["pools"])

  turn()
  for _ in range(_REPEATS.value):
    start = time.perf_counter()
    turn()
    times.append((time.perf_counter() - start) / count)
  kernels = kernel_seconds(turn).values()
  return statistics.median(times), sum(map(sum, kernels)) / count


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with one_sentence(argv):
    rows = whole_numbers(_ROWS)
    writable(_OUTPUT)
  found = []
  for count in rows:
    for name, step in steps(count).items():
      seconds, alone = _seconds(step)
      share, own = (step.moved / x / bandwidth() for x in (seconds, alone))
      found.append(
        {
          "operation": name,
          "rows": count,
          "seconds": seconds,
          "of_bandwidth": share,
          "kernel_seconds": alone,
          "kernels_of_bandwidth": own,
        }
      )
      print(
        f"{name:30} {count:3} rows {1e6 * seconds:9.1f} us "
        f"{share:6.1%} of bandwidth; kernels alone {1e6 * alone:7.1f} us "
        f"{own:6.1%}",
        flush=True,
      )
  if _OUTPUT.value:
    write_result(
      _OUTPUT.value,
      {
        "device": jax.devices()[0].device_kind,
        "heads": _HEADS.value,
        "context": _CONTEXT.value,
        "bytes_per_second": bandwidth(),
        "rows": found,
      },
    )


if __name__ == "__main__":
  app.run(main)
