"""Objects of another kind: refused in one sentence that says where to get one.

Whoever mixes arguments up should not have to read our code to see which.
"""

import functools

import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import (
  Capacity,
  DemandTree,
  HybridDecoder,
  ModelSizes,
  Numerics,
  OverlapHistogram,
  PlacementPolicy,
  PrefixCache,
  Sampling,
  Scheduler,
  TextTokenizer,
  interleave,
  load_mooncake,
  load_token_file,
  measure_prefill,
  observe,
  page_bytes,
  prefill,
  prefill_flops,
  preset,
  prometheus_text,
  save_token_file,
  scan_with_capture,
  simulate,
  solve_placement,
  solve_tree,
  solve_tree_priced,
  state_bytes,
  token_trace,
)
from sparse_prefix_jax.byte_sizes import parse_bytes
from sparse_prefix_jax.kinds import path_of
from sparse_prefix_jax.placement import quadratic_cost
from sparse_prefix_jax.runtime.memory_plan import weights_bytes
from sparse_prefix_jax.training.segments import labelled_answers
from sparse_prefix_jax.training.weights import (
  load_arrays,
  load_weights,
  save_arrays,
)
from tests.models_for_tests import small_model

pytestmark = pytest.mark.usefixtures("unchecked_types")

TRACE = token_trace("two", [[1, 2, 3], [1, 2]], [0, 0])
ODD = (None, 7, "text", [1], {}, np.zeros(2), object())
NO_NUMBERS = (None, *ODD[2:])
NO_PATHS = (None, 7, b"bytes", [1], "a\0b", "\ud800", "a" * 5000)
LONG = (10**400, np.zeros((2, 2)))
MASKED = np.ma.masked_array([1, 2], [False, True])
NO_ARRAYS = (MASKED, [[1], [2, 3]])
HISTOGRAM = OverlapHistogram.create(4, on_host=True)
IDS = np.array([[5, 6, 7]])
replay = functools.partial(simulate, TRACE, PlacementPolicy("last"))
in_bytes = functools.partial(replay, Capacity("bytes", 1 << 20))


def add(carry, x):
  return carry + x, carry


def quadratic_cost_of(value):
  return quadratic_cost(4, value)


def load_weights_of(value):
  return load_weights(value, {"a": np.zeros(1)})


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
    (lambda x: solve_placement([1, 2], 1, integer=x), ODD[1:], "integer must"),
    (functools.partial(solve_placement, [1, 2]), NO_NUMBERS, "budget must be"),
    (lambda x: solve_placement(x, 1), NO_ARRAYS, "weights is .*; it must be"),
    (lambda x: solve_placement([1, 2], 1, x), NO_ARRAYS, "cost is .*; it mu"),
    (lambda x: DemandTree.of(x, [1], [1]), NO_ARRAYS, "parents is .*; it must"),
    (lambda x: DemandTree.of([-1], x, [1]), NO_ARRAYS, "cost is .*; it must"),
    (
      lambda x: DemandTree(np.array([-1]), MASKED, np.array([1])),
      ODD[:1],
      "cost is .*; it must be an array",
    ),
    (lambda x: solve_tree(x, 1), ODD, "tree is .*; it must be a DemandTree"),
    (lambda x: solve_tree_priced(x, 1), ODD, "tree is .*; it must be a Dema"),
    (lambda x: observe(x, 1), ODD, "histogram is .*; it must be an? Overlap"),
    (lambda x: observe(HISTOGRAM, x), (1.5, True, *ODD[2:]), "depth must be "),
    (
      lambda x: observe(HISTOGRAM, 1, x),
      (True, 10**400, float("nan"), *ODD[2:]),
      r"decay must be in \(0, 1\]",
    ),
    (OverlapHistogram.create, (1.5, None, *ODD[2:]), "depths must be an int"),
    (HISTOGRAM.smoothed, (10**400, None, *ODD[2:]), "pseudo_count must be fi"),
    (quadratic_cost_of, (10**400, None, *ODD[2:]), "ratio must be finite"),
    (prefill_flops(preset("tiny")).at, NO_ARRAYS, "tokens is .*; it must be"),
    (
      lambda x: ModelSizes.of_model(preset("tiny"), x),
      (1.5, None, *ODD[2:]),
      "block must be an integer",
    ),
    (
      lambda x: load_token_file("a.npz", max_bytes=x),
      (float("inf"), None, *ODD[2:]),
      "max_bytes must be an integer",
    ),
    (
      lambda x: load_mooncake("a", skip_bad_lines=x),
      ODD,
      "skip_bad_lines must be True or False",
    ),
    (parse_bytes, (np.timedelta64(3, "s"), *NO_NUMBERS), "size must be"),
    (
      lambda x: PlacementPolicy("conditional", budget=x),
      (np.timedelta64(3, "s"), *ODD[2:]),
      "budget must be a finite number",
    ),
    (lambda x: PlacementPolicy("last", replan=x), ODD, "replan must be one"),
    (lambda x: Numerics(page_dtype=x), ODD[1:], "page_dtype is .*; it must"),
    (
      lambda x: scan_with_capture(add, x, np.ones(3), ()),
      ("text", object(), MASKED),
      "carry holds .*; it must hold arrays or numbers",
    ),
    (
      lambda x: scan_with_capture(add, 0.0, np.ones(3), x),
      (MASKED, [[1], [2, 3]]),
      "capture_at is a .*; it must be a list of integers",
    ),
    (
      lambda x: scan_with_capture(add, 0.0, np.ones(3), x),
      (np.array([1, 2], "m8[s]"),),
      "capture_at has dtype .*; positions are integers",
    ),
    (load_weights_of, NO_PATHS, "path is .*; it must be the path of a file"),
    (load_arrays, NO_PATHS, "path is .*; it must be the path of a file"),
    (
      lambda x: load_weights("a", x),
      (None, "text", [1], {}),
      "model is .*; it must hold arrays",
    ),
    (lambda x: save_arrays("a", x), ODD[:4], "arrays is .*; it must be a Map"),
    (
      lambda x: save_arrays("a", {"x": x}),
      (None, np.zeros(2, np.int8), "text", [None]),
      "x is .*, which files do not hold",
    ),
    (TextTokenizer.from_directory, NO_PATHS, "directory is .*; it must be the"),
    (
      lambda x: labelled_answers(IDS, x),
      (None, [[1]], MASKED, np.array([[1.5]]), np.array([[0]])),
      "answers ",
    ),
    (
      lambda x: labelled_answers(IDS, x),
      (np.array([[3]]), np.array([[1, 1]]), np.array([[1], [2]])),
      "answers ",
    ),
    (
      lambda x: measure_prefill(x, [16, 32]),
      ODD,
      "model is .*; it must be an? HybridDecoder",
    ),
  ],
)
def test_another_kind_is_named(call, odd, sentence):
  for value in odd:
    with pytest.raises(ValueError, match=sentence) as refused:
      call(value)
    assert "\n" not in str(refused.value)


def a_cache(**choices):
  return PrefixCache(small_model(), **({"capacity": "1MiB"} | choices))


@pytest.mark.parametrize("long", LONG, ids=["number", "rows"])
@pytest.mark.parametrize(
  "call",
  [
    preset,
    lambda x: preset("tiny", logits_cap=x if x is LONG[1] else -x),
    lambda x: preset("tiny", width=x),
    lambda x: a_cache(placement=x),
    lambda x: a_cache(cost=x),
    lambda x: a_cache(state_share=x),
    lambda x: Sampling(seed=x),
    lambda x: prefill(small_model(), a_cache(), [[1]], salt=x),
    lambda x: prefill(small_model(), a_cache(), [[x]]),
    lambda x: prefill(small_model(), a_cache(), [[1]], anchors=[[x]]),
    lambda x: Scheduler(small_model(), a_cache(), sampler=x),
    lambda x: Scheduler(small_model(), a_cache()).submit([1], sampling=x),
    lambda x: Scheduler(small_model(), a_cache()).submit([1], max_tokens=x),
    lambda x: simulate(TRACE, x, Capacity("sequences", 2)),
    lambda x: simulate(TRACE, PlacementPolicy("last"), x),
  ],
)
def test_a_long_value_is_told_in_short(call, long):
  with pytest.raises(ValueError) as refused:
    call(long)
  assert "\n" not in (text := str(refused.value)) and "0" * 99 not in text


def test_paths_of_all_kinds_are_paths(tmp_path):
  assert path_of("path", str(tmp_path)) == path_of("path", tmp_path) == tmp_path
