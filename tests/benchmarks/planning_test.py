from benchmarks import planning


def test_prompts_are_long_and_share_less_than_their_length():
  rows = list(planning.stream(131_072, 200))
  assert len(rows) == 200
  assert all(0 < shared < length <= 131_072 for length, shared in rows)
  assert len({shared for _, shared in rows}) > 100


def test_summary():
  assert planning.summary([1.0, 2.0, 9.0]) == {
    "median": 2.0,
    "p99": 8.86,
    "max": 9.0,
  }
