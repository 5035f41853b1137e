"""Kernels of a compiled program, counted in a small text made for it."""

import re

import pytest

from benchmarks import machine_code_hlo

TEXT = """
HloModule jit_step, is_scheduled=true

%fused_add (p: f32[2,8]) -> f32[2,8] {
  %p = f32[2,8]{1,0} parameter(0)
  ROOT %add = f32[2,8]{1,0} add(%p, %p)
}

%advance (carry: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %carry = (s32[], f32[2,8]{1,0}) parameter(0)
  %x = f32[2,8]{1,0} get-tuple-element(%carry), index=1
  %loop_dynamic_slice_fusion = f32[2,8]{1,0} fusion(%x), @fused
  %looped = f32[2,8]{1,0} fusion(%loop_dynamic_slice_fusion), @fused
  %i = s32[] get-tuple-element(%carry), index=0
  ROOT %next = (s32[], f32[2,8]{1,0}) tuple(%i, %looped)
}

%before (carry: (s32[], f32[2,8])) -> pred[] {
  %carry.1 = (s32[], f32[2,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  ROOT %less = pred[] compare(%i.1, %i.1), direction=LT
}

ENTRY %main (pool: f32[16,8], tokens: bf16[2,8]) -> (f32[2,8], f32[16,8]) {
  %pool = f32[16,8]{1,0} parameter(0)
  %tokens = bf16[2,8]{1,0} parameter(1)
  %norm = bf16[2,8]{1,0} fusion(%tokens), @fused, #norms/convert_element_type
  %dot = (f32[2,128]{1,0}, s8[9]{0}) @product, #projection/dot_general
  %wide = f32[2,128]{1,0} get-tuple-element(%dot), index=0
  %converted = bf16[2,128]{1,0} fusion(%wide), @fused, #convert_element_type
  %gate = (f32[2,32]{1,0}, s8[99]{0}) @product, #dot_general
  %empty = f32[2,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %ours = (f32[16,8]{1,0}, /*index=1*/f32[2,8]{1,0}) @ours, #step
  %state = f32[16,8]{1,0} get-tuple-element(%ours), index=0
  %out = f32[2,8]{1,0} get-tuple-element(%ours), index=1
  %opened = f32[2,8]{1,0} fusion(%out, %wide), @fused, #convert_element_type
  %residual = f32[2,8]{1,0} fusion(%out, %tokens), @fused, #add
  %silu = f32[2,8]{1,0} fusion(%residual), @fused, #activation/mul
  %zero = s32[] constant(0)
  %start = (s32[], f32[2,8]{1,0}) tuple(%zero, %silu)
  %loop = (s32[], f32[2,8]{1,0}) while(%start), @loop
  %last = f32[2,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %result = (f32[2,8]{1,0}, f32[16,8]{1,0}) tuple(%last, %state)
}
"""
WRITTEN_OUT = {
  "@product": "custom-call(%norm, %tokens), custom_call_target="
  '"__cublas$lt$matmul"',
  "@ours": "custom-call(%pool, %converted, %empty), custom_call_target="
  '"mosaic_gpu_v2"',
  "@loop": "condition=%before, body=%advance, backend_config={"
  '"known_trip_count":{"n":"3"}}',
  "@fused": "kind=kLoop, calls=%fused_add",
}


def program() -> str:
  """The text, its abbreviations written out."""
  text = re.sub(r"#(\S+)", r'metadata={op_name="jit(step)/\1"}', TEXT)
  for short, long in WRITTEN_OUT.items():
    text = text.replace(short, long)
  return text


def names(found) -> list[str]:
  return [x.operation.name for x in found]


def test_what_computes_is_a_kernel_and_what_only_names_is_none():
  found = machine_code_hlo.kernels(program())
  assert names(found) == [
    *("norm", "dot", "converted", "gate", "ours", "opened", "residual"),
    *("silu", "less", "loop_dynamic_slice_fusion", "looped"),
  ]
  assert names(x for x in found if x.looped) == names(found)[-3:]
  assert machine_code_hlo.counts(found) == {
    "kernels": 11,
    "own_kernels": 1,
    "kernels_in_loops": 3,
  }


def test_what_a_loop_runs_counts_as_often_as_it_does():
  found = machine_code_hlo.kernels(program())
  assert machine_code_hlo.launches(found) == {
    "launches": 8 + 3 * 3,
    "copies": 3,
  }


def test_a_state_in_place_is_read_once_and_written_once():
  found = machine_code_hlo.kernels(program())
  own = [x for x in found if x.operation.name == "ours"]
  assert machine_code_hlo.passes(own, numbers=128) == 3  # and an operand
  assert machine_code_hlo.passes(own, numbers=257) == 0
  assert machine_code_hlo.passes(found, numbers=128) == 3 + 2 + 1 + 1


def test_what_no_layer_has_to_have_is_told_apart():
  found = machine_code_hlo.kernels(program())
  told = names(machine_code_hlo.others(found, narrow=64))
  assert sorted(told) == [
    *("gate", "less", "loop_dynamic_slice_fusion", "looped", "opened", "ours")
  ]


@pytest.mark.parametrize(("narrow", "told"), [(8, False), (9, True)])
def test_a_product_of_our_own_is_as_one_of_the_library(narrow, told):
  text = program().replace("jit(step)/step", "jit(step)/projection/step")
  others = machine_code_hlo.others(machine_code_hlo.kernels(text), narrow)
  assert ("ours" in names(others)) == told


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="has no entry"):
    machine_code_hlo.kernels("HloModule nothing")


SUMS = """
HloModule jit_prefill, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%norm (x: bf16[1024,8]) -> f32[1024] {
  %x = bf16[1024,8]{1,0} parameter(0)
  %wider = f32[1024,8]{1,0} convert(%x)
  %zero = f32[] constant(0.125)
  ROOT %all = f32[1024]{0} reduce(%wider, %zero), dimensions={1}, to_apply=%add
}

%count (i: s32[1024,8]) -> s32[1024] {
  %i = s32[1024,8]{1,0} parameter(0)
  %none = s32[] constant(0)
  ROOT %some = s32[1024]{0} reduce(%i, %none), dimensions={1}, to_apply=%add
}

ENTRY %main (fixed: bf16[1024,8], rows: bf16[1024,8]) -> f32[1024] {
  %fixed = bf16[1024,8]{1,0} parameter(0)
  %rows = bf16[1024,8]{1,0} parameter(1)
  %weight = bf16[32,8]{1,0} parameter(2)
  %numbers = s32[1024,8]{1,0} parameter(3)
  %narrow = (f32[1024,32]{1,0}, s8[9]{0}) custom-call(%fixed, %weight), @product
  %wide = (f32[1024,32]{1,0}, s8[99]{0}) custom-call(%rows, %weight), @product
  %counted = s32[1024]{0} fusion(%numbers), kind=kLoop, calls=%count
  ROOT %normed = f32[1024]{0} fusion(%fixed), kind=kCustom, calls=%norm, @norm
}
""".replace("@product", 'custom_call_target="__cublas$lt$matmul"').replace(
  "@norm",
  'metadata={op_name="jit(prefill)/norms/reduce_sum" stack_frame_id=7}, '
  'backend_config={"output_tiles":[{"sizes":["8","8"]}]}',
)


def other_sums(text):
  """Those that a program of 16 chunks, the unchanged text, has not."""
  return machine_code_hlo.other_sums(text, SUMS, rows=1024)


def test_sums_that_differ_in_names_alone_are_the_same():
  renamed = re.sub(r"%(\w+)", r"%a_\1.7", SUMS)
  renamed = renamed.replace("norms/reduce_sum", "heads/reduce_sum")
  assert renamed != SUMS
  assert other_sums(renamed) == 0


@pytest.mark.parametrize(
  ("of", "to"),
  [
    # The layout of what a product writes, then of what a norm reads.
    ("%narrow = (f32[1024,32]{1,0}", "%narrow = (f32[1024,32]{0,1}"),
    ("%x = bf16[1024,8]{1,0}", "%x = bf16[1024,8]{0,1}"),
    # How a norm is cut into tiles, what it multiplies with, over how many rows.
    ('"sizes":["8","8"]', '"sizes":["4","8"]'),
    ("constant(0.125)", "constant(0.25)"),
    ("f32[1024]{0}", "f32[64]{0}"),
  ],
)
def test_a_sum_computed_otherwise_is_another(of, to):
  changed = SUMS.replace(of, to)
  assert changed != SUMS
  assert other_sums(changed) == 1


@pytest.mark.parametrize(
  ("of", "to"),
  [
    ("%rows = bf16[1024,8]", "%rows = bf16[64,8]"),
    ("s32[1024]{0} reduce", "s32[64]{0} reduce"),
    ("kind=kLoop", "kind=kInput"),
  ],
)
def test_wide_products_and_sums_of_integers_are_not_looked_at(of, to):
  """The first have the rows of the program; the others have no order."""
  changed = SUMS.replace(of, to)
  assert changed != SUMS
  assert other_sums(changed) == 0
