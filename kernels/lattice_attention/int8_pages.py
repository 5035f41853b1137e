"""Keys and values: of completed chunks in int8, of those that run as they are.

A completed chunk is quantised once: with m the largest magnitude of one key
head in the chunk, of keys and of values apart,

    scale = m * (1 / 127),  code = round(x * (1 / scale)) in [-127, 127],

all in float32, halves to the even code; a head of zeros has the scale 0 and
the codes 0. Whoever attends takes code * scale, in the dtype of activations.
There is no quotient but 1 / scale: XLA makes a product of some, not of others.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int8, Int32

from sparse_prefix_jax.kernels.chunks import map_chunks

_LARGEST = 127
_STEP = np.float32(1) / np.float32(_LARGEST)
# What is below has no finite reciprocal, and counts as zero.
_LEAST = np.finfo(np.float32).smallest_normal


class RunningPages(NamedTuple):
  """The chunk that runs, in every slot; zeros in those of lattice points.

  Attributes:
    keys: Keys of the tokens so far, in the dtype of activations. [s c hkv k]
    values: Values of the same. [s c hkv k]
  """

  keys: Float[Array, "s c hkv k"]
  values: Float[Array, "s c hkv k"]


class Int8Pages(NamedTuple):
  """Completed chunks, quantised.

  Attributes:
    keys: Codes of the keys. [p c hkv k]
    values: Codes of the values. [p c hkv k]
    key_scales: What a code of a key is worth, of each head. [p hkv]
    value_scales: What one of a value is. [p hkv]
  """

  keys: Int8[Array, "p c hkv k"]
  values: Int8[Array, "p c hkv k"]
  key_scales: Float32[Array, "p hkv"]
  value_scales: Float32[Array, "p hkv"]


def quantise(
  x: Float[Array, "c hkv k"],
) -> tuple[Int8[Array, "c hkv k"], Float32[Array, "hkv"]]:
  """Quantises the keys, or the values, of one chunk.

  Args:
    x: All tokens of a completed chunk.

  Returns:
    The codes, and what a code is worth, of each head.

  Example:
    >>> codes, scales = quantise(jnp.array([[[0.5, -1.0]], [[0.25, 0.0]]]))
    >>> codes[:, 0].tolist(), scales.tolist()
    ([[64, -127], [32, 0]], [0.007874015718698502])
  """
  wide = x.astype(jnp.float32)
  scales = jnp.abs(wide).max(axis=(0, 2)) * _STEP
  scales = jnp.where(scales < _LEAST, 0.0, scales)
  per_code = 1 / jnp.where(scales == 0, 1.0, scales)
  codes = jnp.round(wide * per_code[None, :, None])
  return jnp.clip(codes, -_LARGEST, _LARGEST).astype(jnp.int8), scales


def dequantise(
  codes: Int8[Array, "pages c hkv k"],
  scales: Float32[Array, "pages hkv"],
  dtype: Any,
) -> Float[Array, "pages c hkv k"]:
  """Gives what is attended in the place of what was quantised.

  Args:
    codes: Of some pages.
    scales: Of their heads.
    dtype: Of the activations.

  Example:
    >>> codes, scales = quantise(jnp.array([[[0.5, -1.0]]]))
    >>> dequantise(codes[None], scales[None], "float32").ravel().tolist()
    [0.5039370059967041, -1.0]
  """
  wide = codes.astype(jnp.float32) * scales[:, None, :, None]
  return wide.astype(dtype)


def write_completed(
  pages: Int8Pages,
  number: Int32[Array, "n"],
  completed: Bool[Array, "n"],
  keys: Float[Array, "n c hkv k"],
  values: Float[Array, "n c hkv k"],
) -> Int8Pages:
  """Quantises chunks one by one, and writes those that are completed.

  Args:
    pages: Where they go.
    number: The page of each chunk.
    completed: Whether all of its tokens are there; others write nothing.
    keys: Of the chunks.
    values: Of the chunks.

  Returns:
    The pages.
  """
  (key_codes, key_scales), (value_codes, value_scales) = map_chunks(
    lambda k, v: (quantise(k), quantise(v)), keys, values
  )
  written = key_codes, value_codes, key_scales, value_scales
  index = jnp.where(completed, number, pages.keys.shape[0])
  return Int8Pages(
    *(
      pool.at[index].set(x, mode="drop")
      for pool, x in zip(pages, written, strict=True)
    )
  )
