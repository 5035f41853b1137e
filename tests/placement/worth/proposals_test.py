from sparse_prefix_jax.placement.worth.cells import Kind
from sparse_prefix_jax.placement.worth.proposals import proposals


def test_the_lowest_kind_of_several_at_one_depth():
  found = proposals(8, matched=4, offsets=(4, 1), anchors=[7, 8], roomy=True)
  assert found == [
    (1, Kind.DYADIC),
    (2, Kind.DYADIC),
    (4, Kind.BRANCH),
    (7, Kind.BRANCH),
    (8, Kind.END),
  ]


def test_offsets_in_order_and_within_the_prompt():
  assert proposals(5, matched=0, offsets=(9, 2)) == [
    (3, Kind.NEXT_OFFSET),
    (5, Kind.END),
  ]
  assert proposals(9, matched=9, offsets=(6, 2)) == [
    (3, Kind.OFFSET),
    (7, Kind.NEXT_OFFSET),
    (9, Kind.END),
  ]


def test_nothing_for_a_prompt_without_a_whole_block():
  assert proposals(0, matched=0, offsets=(1,), roomy=True) == []
