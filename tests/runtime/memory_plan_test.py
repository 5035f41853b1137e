"""What a memory holds: figures against arrays and programs that are real."""

import json
import pathlib

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import (
  CapacityError,
  HybridDecoder,
  ModelConfig,
  PrefixCache,
  memory_plan,
  preset,
)
from sparse_prefix_jax import __main__ as main
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.contract import check
from sparse_prefix_jax.layers import Branch, Numerics, SwiGLUConfig
from sparse_prefix_jax.models.checkpoint import read_config
from sparse_prefix_jax.runtime import memory_plan as planner
from sparse_prefix_jax.runtime import programs, shapes
from sparse_prefix_jax.runtime.memory_plan import weights_bytes
from sparse_prefix_jax.runtime.pools import allocate, copy_sequence
from tests.models_for_tests import small_config, small_model

CONFIG = small_config(ladder=(4,))
MEMORY = 64 << 20
GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "golden" / "random"


@pytest.fixture(scope="module")
def plan():
  return memory_plan(CONFIG, MEMORY)


@pytest.fixture
def uncompiled(monkeypatch):
  """Nothing is compiled: a plan counts one program of 100 bytes."""
  sizes = [("head", 100)]
  monkeypatch.setattr(planner, "_program_bytes", lambda *_: sizes)


def bytes_of(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_weights_and_pools_are_those_of_arrays_that_are_allocated(plan):
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  assert plan.weights_bytes == bytes_of(model)
  slots, pages = 3, 5
  pools = allocate(model, slots=slots, pages=pages)
  asked = slots * plan.state_bytes + pages * plan.page_bytes
  assert asked == bytes_of(pools)


@pytest.mark.parametrize("page_dtype", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_pools_of_the_tiny_preset(dtype, page_dtype):
  config = preset("tiny", dtype=dtype, page_dtype=page_dtype)
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  assert weights_bytes(config) == bytes_of(model)
  pools = shapes.pool_shapes(config, slots=2, pages=3)
  real = allocate(model, slots=2, pages=3)
  chex.assert_trees_all_equal_shapes_and_dtypes(pools, real)


def test_weights_of_a_full_vocabulary_are_counted_and_not_made():
  assert weights_bytes(preset("qwen3_5_0_8b", dtype="bfloat16")) == 1504787200


def test_temporaries_are_those_of_the_programs_that_serve(plan):
  """Lowered with a real model and pools of other sizes: the same figures."""
  frozen = programs.freeze(small_model(ladder=(4,)))
  pools = allocate(small_model(ladder=(4,)), slots=96, pages=700)
  calls = {
    "prefill of 4 chunks": programs.prefill_group.lower(
      frozen, pools, shapes.group_shapes(CONFIG, 4)
    ),
    "decode": programs.decode_step.lower(
      frozen, pools, shapes.step_shapes(CONFIG)
    ),
    "head": programs.head.lower(frozen, shapes.hidden_shape(CONFIG)),
    "fork": copy_sequence.lower(pools, *shapes.fork_shapes()),
  }
  expected = {}
  for name, lowered in calls.items():
    memory = lowered.compile().memory_analysis()
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    expected[name] = memory.temp_size_in_bytes + fresh
  assert dict(plan.programs) == expected
  assert plan.temporary_bytes == max(expected.values())


def test_every_rung_has_a_program():
  names = [name for name, _ in planner._lowered(small_config(ladder=(4, 8)))]
  rungs = ["prefill of 4 chunks", "prefill of 8 chunks"]
  assert names == [*rungs, "decode", "head", "fork"]


def test_what_is_left_is_the_cache(plan):
  parts = plan.weights_bytes + plan.temporary_bytes + plan.cache_bytes
  assert parts == plan.memory_bytes == MEMORY
  assert plan.platform == jax.default_backend()


def test_the_table_counts_what_fits_and_no_more(plan):
  assert [row.length for row in plan.lengths] == [256]
  for row in plan.lengths:
    chunks = row.length // CONFIG.numerics.chunk
    running = 3 * plan.state_bytes + chunks * plan.page_bytes
    stored = plan.state_bytes + chunks * plan.page_bytes
    assert (row.running_bytes, row.stored_bytes) == (running, stored)
    assert row.running * running <= plan.cache_bytes
    assert (row.running + 1) * running > plan.cache_bytes
    assert row.stored * stored <= plan.cache_bytes
    assert (row.stored + 1) * stored > plan.cache_bytes
    assert row.state_share == 3 * plan.state_bytes / running


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("placement", ["adaptive", "last"])
def test_so_many_run_at_once_as_the_table_says(placement):
  """Prompts with a few tokens after their last whole chunk, as most have."""
  plan = memory_plan(CONFIG, "8MiB")
  (row,) = plan.lengths
  cache = PrefixCache(
    small_model(),
    capacity=plan.cache_bytes,
    state_share=row.state_share,
    placement=placement,
  )
  store, random = cache.store, np.random.default_rng(0)
  with pytest.raises(CapacityError):
    for _ in range(2 * row.running):
      prompt = random.integers(0, 512, row.length - 5)
      (running,) = store.open([Request.of_tokens(prompt, store.chunk)])
      store.commit(running, store.next_segment(running))
  assert len(store.running) == row.running > 0


@pytest.mark.usefixtures("uncompiled")
def test_lengths_go_up_to_the_longest_sequence():
  config = small_config(ladder=(4,), max_length=9000)
  plan = memory_plan(config, "64MiB")
  assert [row.length for row in plan.lengths] == [1024, 8192, 9000]
  row = plan.lengths[-1]  # 562 whole chunks, and the running one
  assert row.running_bytes == 3 * plan.state_bytes + 563 * plan.page_bytes
  assert row.stored_bytes == plan.state_bytes + 562 * plan.page_bytes


@pytest.mark.usefixtures("uncompiled")
def test_pages_in_int8_are_counted_and_told():
  fields = {"ladder": (4,), "max_length": 256}
  exact, quantised = (
    memory_plan(small_config(page_dtype=x, **fields), MEMORY)
    for x in (None, "int8")
  )
  scales = 4 * 2 * 2  # of keys and values, of two heads
  assert quantised.page_bytes == exact.page_bytes // 4 + scales
  assert quantised.state_bytes == exact.state_bytes + exact.page_bytes
  assert "one page of 16 tokens in int8" in quantised.table()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("kind", ["gated_delta_net", "attention"])
def test_a_model_with_layers_of_one_kind(kind):
  changes = {"ladder": (4,), "layer_types": (kind,), "max_length": 10}
  plan = memory_plan(small_config(**changes), MEMORY)
  row = plan.lengths[0]
  if kind == "attention":  # less than a page leaves nothing to store
    assert (plan.state_bytes, row.state_share, row.stored) == (0, 0.0, 0)
  else:
    assert (plan.page_bytes, row.state_share) == (0, 1.0)
    assert row.stored == plan.cache_bytes // plan.state_bytes
  assert row.running > 0
  model = HybridDecoder(small_config(**changes), rngs=nnx.Rngs(0))
  choices = {"capacity": plan.cache_bytes, "state_share": row.state_share}
  cache = PrefixCache(model, **choices)  # as docs/how-to/memory.md says
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.pools))
  one = plan.state_bytes or plan.page_bytes
  assert plan.cache_bytes - one < held <= plan.cache_bytes
  other = {"capacity": plan.cache_bytes, "state_share": 1 - row.state_share}
  with pytest.raises(ValueError, match="it must be in"):
    PrefixCache(model, **other)


def refused(config, memory):
  with pytest.raises(ValueError, match=r"\w") as caught:
    memory_plan(config, memory)
  text = str(caught.value)
  assert "\n" not in text
  return text


@pytest.mark.parametrize("memory", [0, -1, "24 bananas", "", True])
def test_a_memory_that_is_no_size_is_refused(memory):
  assert refused(CONFIG, memory).startswith("memory must be a whole number")


def test_a_memory_that_does_not_hold_one_sequence_is_refused(plan):
  least = plan.weights_bytes + plan.temporary_bytes
  least += 2 * plan.state_bytes + plan.page_bytes
  assert memory_plan(CONFIG, least).lengths[0].running == 0
  assert refused(CONFIG, least - 1) == (
    f"memory is {least - 1} bytes, and {least} are needed at least: "
    f"{plan.weights_bytes} for the weights, {plan.temporary_bytes} for the "
    f"largest program, and two states of {plan.state_bytes} and one page of "
    f"{plan.page_bytes} for a sequence."
  )
  # What the weights alone do not fit into is refused before any compilation.
  assert "for the weights, and two states" in refused(CONFIG, 1000)


@pytest.mark.usefixtures("uncompiled")
def test_a_model_that_keeps_nothing_is_refused():
  """There is nothing to plan, nor to cache; its layers can be checked."""
  branches = (Branch(SwiGLUConfig(hidden=64)),)
  numerics = Numerics(ladder=(4,), max_length=512)
  config = ModelConfig(
    vocab_size=64, width=64, branches=branches, numerics=numerics
  )
  expected = (
    "model: its branches keep neither states nor pages, so nothing of it can "
    "be cached."
  )
  assert refused(config, MEMORY) == expected
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="neither states nor pages") as caught:
    PrefixCache(model, capacity="1MiB")
  assert str(caught.value) == expected
  assert check(model) == ()


@pytest.fixture
def command(capsys):
  def run(*flags):
    status = main.run(["sparse_prefix_jax", "memory_plan", *flags])
    return status, *capsys.readouterr()

  return run


@pytest.mark.usefixtures("uncompiled")
def test_the_command_prints_a_table_and_writes_a_report(command, tmp_path):
  report = tmp_path / "made" / "plan.json"
  status, out, _ = command(
    "--preset=tiny", "--memory=64MiB", "--max_length=2048", f"--report={report}"
  )
  content = json.loads(report.read_text("utf-8"))
  assert status == 0
  assert content["memory_bytes"] == 64 << 20
  assert content["weights_bytes"] == weights_bytes(preset("tiny"))
  assert [row["length"] for row in content["lengths"]] == [1024, 2048]
  lines = out.splitlines()
  assert "64.0 MiB" in lines[0]
  assert [line.split()[0] for line in lines[-2:]] == ["1,024", "2,048"]
  assert f"{content['lengths'][1]['running']:,}" in lines[-1]


@pytest.mark.usefixtures("uncompiled")
def test_the_command_reads_the_configuration_of_a_directory(command, tmp_path):
  """There are no weights: only config.json is read."""
  golden = GOLDEN.joinpath("config.json").read_text("utf-8")
  widths = {"intermediate_size": 128, "linear_key_head_dim": 32}
  fields = json.loads(golden) | widths | {"linear_value_head_dim": 32}
  (tmp_path / "config.json").write_text(json.dumps(fields), "utf-8")
  report = tmp_path / "plan.json"
  status, _, err = command(
    f"--model={tmp_path}",
    "--memory=64MiB",
    "--dtype=bfloat16",
    "--max_length=1024",
    f"--report={report}",
  )
  assert status == 0, err
  content = json.loads(report.read_text("utf-8"))
  config = read_config(tmp_path, dtype="bfloat16", max_length=1024)
  assert content["weights_bytes"] == weights_bytes(config)
  assert content["config"]["numerics"]["dtype"] == "bfloat16"
  written = f"--report={tmp_path / 'config.json'}"
  status, _, err = command(f"--model={tmp_path}", "--memory=64MiB", written)
  assert status == 2 and "which is the same file" in err


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (["--preset=tiny"], "memory_plan needs --memory"),
    (["--preset=tiny", "--memory=0GiB"], "memory must be a whole number"),
    (["--preset=tiny", "--memory=1KiB"], "memory is 1024 bytes, and"),
    (["--preset=huge", "--memory=1GiB"], "preset is 'huge'; the presets are"),
    (["--model=nowhere", "--memory=1GiB"], "nowhere/config.json does not"),
    (["--memory=1GiB"], "one model is needed, of a preset or of a folder"),
    (
      ["--preset=tiny", "--model=x", "--memory=1GiB"],
      "one model is needed, of a preset or of a folder",
    ),
    (["--preset=tiny", "--memory=1GiB", "--dtype=int8"], "dtype is 'int8'"),
    (["--preset=tiny", "--memory=1GiB", "--max_length=0"], "max_length is 0"),
    (["--preset=tiny", "--memory=1GiB", "--budget=2"], "--budget is no flag"),
  ],
)
def test_the_command_refuses_in_one_sentence(command, flags, sentence):
  status, out, err = command(*flags)
  assert status == 2 and not out
  assert err.startswith(f"sparse_prefix_jax: {sentence}")
  assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("unchecked_types")
def test_a_name_is_no_configuration():
  with pytest.raises(ValueError, match="config is 'tiny'; it must be a Model"):
    memory_plan("tiny", "1GiB")
