"""Objects of another kind: refused in one sentence that says where to get one.

Whoever mixes arguments up should not have to read our code to see which.
"""

import functools

import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import (
  Capacity,
  HybridDecoder,
  ModelSizes,
  PlacementPolicy,
  Sampling,
  interleave,
  load_mooncake,
  load_token_file,
  page_bytes,
  prefill_flops,
  preset,
  prometheus_text,
  save_token_file,
  simulate,
  state_bytes,
  token_trace,
)
from sparse_prefix_jax.kinds import path_of
from sparse_prefix_jax.runtime.memory_plan import weights_bytes

pytestmark = pytest.mark.usefixtures("unchecked_types")

TRACE = token_trace("two", [[1, 2, 3], [1, 2]], [0, 0])
ODD = (None, 7, "text", [1], {}, np.zeros(2), object())
NO_NUMBERS = (None, *ODD[2:])
NO_PATHS = (None, 7, b"bytes", [1], "a\0b", "\ud800")
replay = functools.partial(simulate, TRACE, PlacementPolicy("last"))
in_bytes = functools.partial(replay, Capacity("bytes", 1 << 20))


def sizes_of(value):
  return ModelSizes(state_bytes=value, page_bytes=1)


def decoder_with(rngs):
  return HybridDecoder(preset("tiny"), rngs=rngs)


@pytest.mark.parametrize(
  ("call", "odd", "sentence"),
  [
    (state_bytes, ODD, "config is .*; it must be a ModelConfig, of `preset`"),
    (page_bytes, ODD, "config is .*; it must be a ModelConfig, of `preset`"),
    (prefill_flops, ODD, "config is .*; it must be a ModelConfig, of `preset`"),
    (weights_bytes, ODD, "config is .*; it must be a ModelConfig, of `preset`"),
    (functools.partial(HybridDecoder, rngs=nnx.Rngs(0)), ODD, "config is "),
    (decoder_with, ODD, "rngs is .*; it must be a Rngs, of flax.nnx"),
    (preset, ODD, "preset is .*; the presets are"),
    (interleave, ODD, "trace is .*; it must be a Trace, of `token_trace`"),
    (
      lambda x: save_token_file("a.npz", x),
      ODD,
      "trace is .*; it must be a Tr",
    ),
    (
      lambda x: save_token_file(x, TRACE),
      NO_PATHS,
      "path is .*; it must be th",
    ),
    (load_token_file, NO_PATHS, "path is .*; it must be the path of a file"),
    (load_mooncake, NO_PATHS, "path is .*; it must be the path of a file"),
    (lambda x: load_mooncake("a", time_unit=x), ODD[1:], "time_unit must be"),
    (lambda x: token_trace("t", x, [0]), ODD[:2], "t: the rows must be a list"),
    (
      lambda x: token_trace("t", [[1]], x),
      ODD[:2],
      "t: the groups must be a l",
    ),
    (
      lambda x: token_trace("t", [[1]], [0], x),
      ODD[1:2],
      "the answers must be",
    ),
    (
      sizes_of,
      (*NO_NUMBERS, 1.5, True),
      "state_bytes must be a positive integer and ",
    ),
    (
      lambda x: in_bytes(sizes=x),
      ODD[1:],
      "sizes is .*; it must be a ModelSiz",
    ),
    (
      lambda x: replay(Capacity("sequences", 2), warmup_fraction=x),
      (*NO_NUMBERS, True, float("nan")),
      r"warmup_fraction must be a number in \[0, 1\), got",
    ),
    (prometheus_text, ODD, "stats is .*; it must be a StoreStats, of"),
    (
      lambda x: Sampling(temperature=x),
      (10**400, *NO_NUMBERS),
      "temperature is .*; it",
    ),
  ],
)
def test_another_kind_is_named(call, odd, sentence):
  for value in odd:
    with pytest.raises(ValueError, match=sentence) as refused:
      call(value)
    assert "\n" not in str(refused.value)


def test_paths_of_all_kinds_are_paths(tmp_path):
  assert path_of("path", str(tmp_path)) == path_of("path", tmp_path) == tmp_path
