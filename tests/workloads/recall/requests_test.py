"""The stream of questions that the demo serves."""

import numpy as np
import pytest

from sparse_prefix_jax.workloads.recall.requests import (
  FACTS,
  LENGTHS,
  recall_requests,
)

REQUESTS = recall_requests(3)


def test_requests_about_a_document_share_it_and_ask_different_things() -> None:
  for group, length in enumerate(LENGTHS):
    about = [r for r in REQUESTS if r.group == group]
    assert len(about) == 9
    bodies = {r.token_ids[: r.shared].tobytes() for r in about}
    assert len(bodies) == 1
    assert len({r.token_ids[r.shared :].tobytes() for r in about}) == 9
    assert min(r.token_ids.size for r in about) == length


def test_second_turns_continue_an_answered_first_one() -> None:
  earlier: list[bytes] = []
  second = 0
  for request in REQUESTS:
    ids = request.token_ids
    if ids.size > LENGTHS[request.group]:
      second += 1
      assert ids[:-9].tobytes() in earlier
    earlier.append(ids.tobytes())
  assert second == 3 * len(LENGTHS)


def test_the_answer_is_stated_and_the_stream_is_drawn_from_its_seed() -> None:
  assert all(r.answer in r.token_ids[: r.shared] for r in REQUESTS)
  again, other = recall_requests(3), recall_requests(4)
  for one, same in zip(REQUESTS, again, strict=True):
    assert np.array_equal(one.token_ids, same.token_ids)
  assert REQUESTS[0].token_ids.tobytes() != other[0].token_ids.tobytes()
  assert FACTS >= 24
  with pytest.raises(ValueError, match="seed is -1; it must not be negative"):
    recall_requests(-1)
