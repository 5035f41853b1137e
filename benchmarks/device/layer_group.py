"""A layer group's programs on a device: their kernels, and what waits between.

    python -m benchmarks.device.layer_group --output=FILE.json

One token of many sequences, and one group of chunks, as the library's own
programs run them. The time of a program, many of them dispatched at once,
stands beside the time of its kernels alone; and the bytes of a step that have
to come and go (weights, states, keys and values) beside what the device can
copy.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks import command_line
from benchmarks.device.copying import bandwidth
from benchmarks.device.kernel_times import kernel_seconds, told
from benchmarks.record import write_result
from sparse_prefix_jax import HybridDecoder
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, Chunks, Rows
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.runtime import programs

_MODEL = flags.DEFINE_string("model", "qwen3_5_0_8b_group", "Preset.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "bfloat16", ["float32", "bfloat16"], "Of it."
)
_ROWS = flags.DEFINE_list("rows", ["16", "64"], "Sequences of a step.")
_CONTEXT = flags.DEFINE_integer("context", 2048, "Tokens before.", 64)
_CHUNKS = flags.DEFINE_integer("chunks", 16, "Of a prompt; 0 for none.", 0)
_CALLS = flags.DEFINE_integer("calls", 20, "Programs of a turn.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed turns.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_CHUNK = 64


def _model(rows: int) -> HybridDecoder:
  config = command_line.model(_MODEL)
  ladder = (max(_CHUNKS.value, 1),)
  config = config.replace(dtype=_DTYPE.value, decode_rows=rows, ladder=ladder)
  return HybridDecoder(config, rngs=nnx.Rngs(0))


def _decoding(rows: int) -> tuple[Callable[[], Any], int]:
  """One step of that many sequences, and the bytes that it has to move."""
  model, context = _model(rows), _CONTEXT.value
  config = model.config
  pages = context // _CHUNK + 1
  table = np.zeros((rows, config.numerics.max_length // _CHUNK), np.int32)
  table[:, :pages] = np.arange(rows * pages).reshape(rows, pages)
  slots = jnp.arange(rows, dtype=jnp.int32)
  position = jnp.full(rows, context, jnp.int32)
  step = programs.Step(
    tokens=slots % 7,
    rows=Rows(slots, slots, position, jnp.ones(rows, jnp.bool_)),
    page_table=jnp.asarray(table),
  )
  frozen = programs.freeze(model)
  held = {"pools": model.init_pools(slots=rows, pages=rows * pages)}

  def run() -> Any:
    out, held["pools"] = programs.decode_step(frozen, held["pools"], step)
    return out

  read = rows * context * page_bytes(config) // _CHUNK
  return run, _layer_bytes(model) + 2 * rows * state_bytes(config) + read


def _prefill(chunks: int) -> Callable[[], Any]:
  """One cold prompt of that many chunks."""
  model = _model(2)
  index = np.arange(chunks, dtype=np.int32)
  table = np.zeros((chunks, model.config.numerics.max_length // _CHUNK))
  table[0, :chunks] = index
  group = programs.Group(
    tokens=jnp.asarray(index[:, None] * _CHUNK + np.arange(_CHUNK)) % 512,
    chunks=Chunks(
      read=jnp.asarray(np.where(index == 0, 0, CARRY), jnp.int32),
      write=jnp.asarray(np.where(index == chunks - 1, 0, NONE), jnp.int32),
      length=jnp.full(chunks, _CHUNK, jnp.int32),
      position=jnp.asarray(index * _CHUNK),
      request=jnp.zeros(chunks, jnp.int32),
    ),
    page_table=jnp.asarray(table, jnp.int32),
  )
  frozen = programs.freeze(model)
  held = {"pools": model.init_pools(slots=2, pages=chunks + 1)}

  def run() -> Any:
    out, held["pools"] = programs.prefill_group(frozen, held["pools"], group)
    return out

  return run


def _layer_bytes(model: HybridDecoder) -> int:
  """Bytes of all weights but the embedding and the head."""
  vocabulary = model.config.vocab_size
  leaves = jax.tree.leaves(model)
  return sum(x.nbytes for x in leaves if vocabulary not in x.shape)


def _measured(run: Callable[[], Any]) -> dict[str, Any]:
  """A program's time, that of its kernels, and which take the most of it."""
  calls, times = _CALLS.value, []
  for turn in range(_REPEATS.value + 1):
    start, out = time.perf_counter(), None
    for _ in range(calls):
      # A result that is kept would have the next one elsewhere, and a program
      # that is launched as a graph made anew.
      out = run()
    jax.block_until_ready(out)
    if turn:
      times.append((time.perf_counter() - start) / calls)
  kernels = kernel_seconds(lambda: [run() for _ in range(calls)])
  return {"seconds": statistics.median(times), **told(kernels, calls)}


def _tell(name: str, row: dict[str, Any]) -> None:
  print(
    f"{name}: {1e6 * row['seconds']:.1f} us, {row['kernels']:.1f} kernels of "
    f"{1e6 * row['kernel_seconds']:.1f} us in all; of bandwidth "
    f"{row.get('of_bandwidth', 0):.1%}, kernels alone "
    f"{row.get('kernels_of_bandwidth', 0):.1%}"
  )
  for x in row["longest"]:
    print(f"  {1e6 * x['seconds']:8.1f} us {x['calls']:5.1f} x {x['kernel']}")


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    rows = command_line.whole_numbers(_ROWS, least=2)
    command_line.writable(_OUTPUT)
    _model(2)
  found: dict[str, Any] = {}
  for count in rows:
    run, moved = _decoding(count)
    row = _measured(run)
    least = moved / bandwidth()
    row |= {
      "bytes": moved,
      "of_bandwidth": least / row["seconds"],
      "kernels_of_bandwidth": least / row["kernel_seconds"],
    }
    found[f"decode of {count} rows"] = row
    _tell(f"decode of {count} rows", row)
  if _CHUNKS.value:
    name = f"prefill of {_CHUNKS.value} chunks"
    found[name] = _measured(_prefill(_CHUNKS.value))
    _tell(name, found[name])
  if _OUTPUT.value:
    write_result(
      _OUTPUT.value,
      {
        "device": jax.devices()[0].device_kind,
        "model": _MODEL.value,
        "dtype": _DTYPE.value,
        "context": _CONTEXT.value,
        "bytes_per_second": bandwidth(),
        "programs": found,
      },
    )


if __name__ == "__main__":
  app.run(main)
