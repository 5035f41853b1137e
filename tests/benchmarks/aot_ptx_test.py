"""The check of waits, on small kernels made for it."""

import pytest

from benchmarks import aot_ptx

PRODUCT = (
  "{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned"
  ".m64n64k16.f32.bf16.bf16 {%r1,%r2}, %rd1, %rd2, p, 1, 1, 0, 0; }"
)
COMMIT = "wgmma.commit_group.sync.aligned;"
WAIT = "wgmma.wait_group.sync.aligned 	0;"
READ = "mul.f32 	%r7, %r2, %r9;"


def told(*lines: str) -> list[str]:
  return aot_ptx.unwaited("\n".join(lines))


def test_reads_behind_the_wait_are_well():
  before = "mov.b32 	%r1, 0f00000000;"
  beside = "add.s64 	%rd3, %rd1, 2; // %r1 is told in a comment only"
  assert told(before, PRODUCT, beside, PRODUCT, COMMIT, WAIT, READ) == []


@pytest.mark.parametrize(
  "lines",
  [
    (PRODUCT, READ, COMMIT, WAIT),
    (PRODUCT, COMMIT, READ, WAIT),
    (PRODUCT, COMMIT, WAIT, PRODUCT, READ),
    (PRODUCT, COMMIT, READ),
  ],
)
def test_a_read_before_the_wait_is_told(lines):
  assert told(*lines) == [READ]


def test_what_is_written_before_the_wait_is_told_too():
  write = "mov.b32 	%r1, %r5;"
  assert told(PRODUCT, COMMIT, write, WAIT) == [write]


def test_a_wait_that_leaves_a_group_leaves_its_accumulator():
  other = PRODUCT.replace("{%r1,%r2}", "{%r3,%r4}")
  some = WAIT.replace("0", "1")
  late = READ.replace("%r2", "%r4")
  lines = PRODUCT, COMMIT, other, COMMIT, some, READ
  assert told(*lines, late, WAIT, late) == [late]


def test_a_product_of_another_form_is_told():
  line = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0,"
  assert aot_ptx.unwaited(line) == [line]


def test_products_under_way_at_a_branch_are_told():
  branch = "@%p1 bra 	$L__BB0_2;"
  assert told(PRODUCT, COMMIT, branch, "$L__BB0_2:", WAIT) == [
    branch,
    "$L__BB0_2:",
  ]
  assert told(PRODUCT, COMMIT, WAIT, branch, "$L__BB0_2:") == []
