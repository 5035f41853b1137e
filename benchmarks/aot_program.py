"""What a program is that is compiled ahead of time, and the sizes of all."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from sparse_prefix_jax.runtime.in_place import PoolProgram

Shape: TypeAlias = jax.ShapeDtypeStruct

CHUNKS, TOKENS, HEADS, VALUE_HEADS = 8, 64, 4, 8
CHANNELS, STATES, WINDOW, KEY_HEADS = 2048, 16, 4, 2
LONG_TOKENS = 256
"""Of a chunk that fills more than one register's lanes."""
ROWS = 16
MODEL_WIDTH = 1024
GROUP_CHUNKS = 16


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled: `run(inputs, pools, implementation=)`, pools donated.

  Attributes:
    run: The operation.
    inputs: Tree of shapes of what it reads.
    pools: Number of slots -> tree of shapes of the pools.
    compiled: One of the library's own programs, whose arguments `run` gives;
      None compiles `run` itself.
    pool_bytes: Of all pools: so many that no fast memory hides a copy of one.
  """

  run: Callable[..., Any]
  inputs: Any
  pools: Callable[[int], Any]
  compiled: PoolProgram | None = None
  pool_bytes: int = 2**28
