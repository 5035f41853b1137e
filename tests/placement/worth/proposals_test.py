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


def test_a_depth_is_of_use_beyond_what_is_known_and_before_the_end():
  def found(matched, depth):
    return dict(proposals(9, matched=matched, start_depth=depth, offsets=(2,)))

  assert found(0, 4) == {4: Kind.START_DEPTH, 7: Kind.OFFSET, 9: Kind.END}
  assert 4 not in found(5, 4) and found(0, 7)[7] == Kind.OFFSET
  assert found(0, 9) == found(0, None) == found(0, 12)


def test_nothing_for_a_prompt_without_a_whole_block():
  assert proposals(0, matched=0, offsets=(1,), roomy=True) == []
