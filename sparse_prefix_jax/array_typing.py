"""The notation of the library: one letter, one meaning, one alias per role.

Letters, as in every docstring and signature:

| letter | meaning                               |
|--------|---------------------------------------|
| b      | requests (or rows) of a batch         |
| t      | tokens                                |
| n      | packed chunks                         |
| c      | tokens of a chunk                     |
| h      | heads of queries and keys             |
| hv     | heads of values                       |
| hkv    | heads of keys and values in attention |
| k, v   | key and value width of a head         |
| d      | model width                           |
| w      | convolution window                    |
| s      | state slots                           |
| p      | key/value pages                       |
| m      | budget of states                      |

In placement N is the number of depths, `w(t)` the weight of overlap depth t and
`F(t)` the cumulative cost; in the recurrence `A` is the cumulated log decay.
Lengths are in tokens, sizes in bytes, times in seconds unless said otherwise.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import (
  Array,
  Bool,
  Float,
  Float32,
  Float64,
  Int,
  Int32,
  Int64,
)

# Tokens: a prompt as a user may hand it over, and as the programs see it.
Tokens: TypeAlias = Sequence[int] | np.ndarray | jax.Array
TokenChunks: TypeAlias = Int32[Array, "n c"]

# Activations.
Hidden: TypeAlias = Float[Array, "rows d"]
Logits: TypeAlias = Float32[Array, "rows vocab"]

# The recurrence.
Gates: TypeAlias = Float32[Array, "n c hv"]

# What outlives a request.
StatePool: TypeAlias = Float32[Array, "s hv k v"]
ConvPool: TypeAlias = Float[Array, "s w-1 d"]
PagePool: TypeAlias = Float[Array, "p c hkv k"]
PageTable: TypeAlias = Int32[Array, "b pages"]

# Placement.
Weights: TypeAlias = Float[Array, "N"] | Int[Array, "N"]
Positions: TypeAlias = Int32[Array, "m"]
NodeValues: TypeAlias = (
  Int64[np.ndarray, "nodes"] | Float64[np.ndarray, "nodes"]
)
Flag: TypeAlias = Bool[Array, ""]
