import pytest

from sparse_prefix_jax.workloads.block_sizes import (
  PromptSize,
  better_block,
  block_size_of,
  misfit,
)

pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.mark.parametrize(
  "name, given, size",
  [
    ("x.jsonl", None, 512),
    ("x.jsonl", 64, 64),
    ("a/x.b32.jsonl.gz", None, 32),
    ("a/x.b32.jsonl.gz", 32, 32),
    ("qwen_traceA_blksz_16.jsonl", None, 16),
    ("qwen_traceA_blksz_16.jsonl.xz", 16, 16),
    ("x-blksz-64-part1.jsonl", None, 64),
    ("x.blksz128.jsonl", None, 128),
    ("x_blksz_16.b16.jsonl", None, 16),
    ("subset_b16.jsonl", None, 512),
    ("x.b16/trace.jsonl", None, 512),
  ],
)
def test_the_name_says_it_or_the_caller(name, given, size):
  assert block_size_of(name, given) == size


@pytest.mark.parametrize(
  "name, given, sentence",
  [
    ("x.b32.jsonl", 64, r"block_size=64 contradicts x.b32.jsonl, which has"),
    ("x_blksz_16.jsonl", 512, "contradicts x_blksz_16.jsonl, .* of 16 tokens"),
    ("x_blksz_16.b32.jsonl", None, r"names several block sizes: \[16, 32\]"),
    ("x.jsonl", 0, "block_size must be at least 1 .* got 0"),
    ("x.jsonl", 2**31, "block_size must be .* at most 2147483647, got 21474"),
    ("x.jsonl", -16, "block_size must be at least 1 .* got -16"),
    ("x.jsonl", 16.0, "block_size must be an integer, got 16.0"),
    ("x.jsonl", True, "block_size must be an integer, got True"),
    ("x.jsonl", "16", "block_size must be an integer, got '16'"),
    ("x.b0.jsonl", None, "the block size in the name x.b0.jsonl must be at le"),
    ("x.b9999999999.jsonl", None, "must be at least 1 and at most 2147483647"),
  ],
)
def test_what_contradicts_itself_is_refused(name, given, sentence):
  with pytest.raises(ValueError, match=sentence):
    block_size_of(name, given)


@pytest.mark.parametrize(
  "tokens, ids, fit",
  [(32, 2, True), (32, 3, False), (33, 3, True), (33, 2, True), (33, 4, False)],
)
def test_a_partial_block_may_be_counted(tokens, ids, fit):
  assert PromptSize(tokens, ids).fit(16) is fit


def test_misfits_are_told_in_both_directions():
  assert misfit(PromptSize(1100, 1), 512) == (
    "1100 tokens are 2 whole blocks of 512, but hash_ids has 1"
  )
  assert misfit(PromptSize(100, 7), 512) == (
    "100 tokens are at most 1 blocks of 512, but hash_ids has 7"
  )


def test_the_size_that_fits_is_found():
  bailian = [PromptSize(521, 33), PromptSize(400, 25), PromptSize(5, 1)]
  assert better_block(bailian, 512) == "block_size=16 would fit all 3 lines"
  damaged = [*bailian, PromptSize(1000, 2)]
  assert better_block(damaged, 512) == "block_size=16 would fit 3 of 4 lines"
  assert better_block(damaged, 16) is None
