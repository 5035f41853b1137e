import json

import numpy as np
import pytest

from sparse_prefix_jax.workloads import load_quality, load_system_prompts

pytestmark = pytest.mark.usefixtures("unchecked_types")


def tokenize(text):
  return list(text.encode())


def article(text, *questions):
  asked = [{"question": q, "options": ["a", "b"]} for q in questions]
  return json.dumps({"article": text, "questions": asked})


def test_quality_release(tmp_path):
  path = tmp_path / "QuALITY.jsonl"
  lines = [article("One.", "Who?", "Why?"), article("Two.", "How?")]
  path.write_text("\n".join([*lines, article("One.", "When?")]))
  trace = load_quality(path, tokenize, separator=" ")
  texts = [bytes(r.ids.tolist()).decode() for r in trace.requests]
  assert texts == ["One. Who?", "One. Why?", "Two. How?", "One. When?"]
  assert [r.group for r in trace.requests] == [0, 0, 1, 0]


@pytest.mark.parametrize(
  "bad, sentence",
  [
    ('{"questions": []}', "line 2: article must be a text"),
    ('{"article": "x"}', "line 2: questions must be a list that is not empty"),
    (
      '{"article": "x", "questions": ["y"]}',
      "line 2: every question needs a text `question`",
    ),
    ('{"article"', "line 2 is not JSON"),
  ],
)
def test_malformed_quality_is_refused(tmp_path, bad, sentence):
  path = tmp_path / "q.jsonl"
  path.write_text(article("One.", "Who?") + "\n" + bad)
  with pytest.raises(ValueError, match=sentence):
    load_quality(path, tokenize)


def test_empty_quality_is_refused(tmp_path):
  path = tmp_path / "q.jsonl"
  path.write_text("")
  with pytest.raises(ValueError, match=r"q.jsonl has no requests"):
    load_quality(path, tokenize)


@pytest.mark.parametrize(
  "ids, sentence",
  [
    ([1.5, 2.0], "must be a vector of integers, got float64"),
    ([1, np.nan], "must be a vector of integers, got float64"),
    ([1, -1], r"must be in \[0, 2\*\*31\), got -1"),
    (None, "must be a vector of integers, got object"),
    ("1 2", "must be a vector of integers, got <U3"),
  ],
)
def test_tokenizers_that_return_no_ids_are_refused(
  tmp_path, folder, ids, sentence
):
  path = tmp_path / "q.jsonl"
  path.write_text("\n" + article("One.", "Who?"))
  returned = np.array(ids)  # past the types that are checked in tests
  with pytest.raises(
    ValueError, match=f"q.jsonl, line 2: token ids {sentence}"
  ):
    load_quality(path, lambda text: returned)
  queries = tmp_path / "queries.txt"
  queries.write_text("Hello")
  with pytest.raises(ValueError, match=f"prompts: request 0: .* {sentence}"):
    load_system_prompts(folder, queries, lambda text: returned)


def test_a_tokenizer_that_returns_nothing_is_refused(tmp_path):
  path = tmp_path / "q.jsonl"
  path.write_text(article("One.", "Who?"))
  with pytest.raises(ValueError, match=r"q.jsonl, line 1 has no tokens"):
    load_quality(path, lambda text: [])


@pytest.fixture
def folder(tmp_path):
  prompts = tmp_path / "prompts"
  prompts.mkdir()
  (prompts / "b.md").write_text("Be brief.")
  (prompts / "a.txt").write_text("Be kind.")
  (prompts / "blank.txt").write_text("  \n")
  (prompts / "notes.pdf").write_text("not read")
  return prompts


def test_system_prompts_with_queries(tmp_path, folder):
  queries = tmp_path / "queries.txt"
  queries.write_text("Hello\n\nHelp me\n")
  trace = load_system_prompts(
    folder, queries, tokenize, count=40, separator="|"
  )
  heads = {0: "Be kind.", 1: "Be brief."}
  seen = set()
  for request in trace.requests:
    head, query = bytes(request.ids.tolist()).decode().split("|")
    assert head == heads[request.group]
    seen.add((head, query))
  assert len(trace) == 40 and len(seen) == 4


def test_queries_as_json_lines(tmp_path, folder):
  queries = tmp_path / "queries.jsonl"
  queries.write_text('{"query": "Hi"}\n')
  trace = load_system_prompts(folder, queries, tokenize, count=2)
  assert all(r.ids.tolist()[-2:] == [72, 105] for r in trace.requests)
  queries.write_text('{"query": "Hi"}\n{"text": "Hi"}\n')
  with pytest.raises(ValueError, match="line 2 needs a text `query`"):
    load_system_prompts(folder, queries, tokenize)


def test_nothing_to_read_is_refused(tmp_path, folder):
  queries = tmp_path / "queries.txt"
  queries.write_text("\n")
  with pytest.raises(ValueError, match=r"queries.txt has no queries"):
    load_system_prompts(folder, queries, tokenize)
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(ValueError, match="empty has no system prompts"):
    load_system_prompts(empty, queries, tokenize)
  with pytest.raises(FileNotFoundError, match="there is no folder"):
    load_system_prompts(tmp_path / "missing", queries, tokenize)


@pytest.mark.parametrize(
  "numbers, sentence",
  [
    ({"count": 0}, "count must be an integer of at least 1 .* got 0"),
    ({"count": True}, "count must be an integer of at least 1 .* got True"),
    ({"seed": -1}, "seed must be an integer of at least 0 .* got -1"),
    ({"seed": 2**32}, "seed must be .* below 4294967296, got 4294967296"),
  ],
)
def test_numbers_out_of_range_are_refused(tmp_path, folder, numbers, sentence):
  queries = tmp_path / "queries.txt"
  queries.write_text("Hello")
  with pytest.raises(ValueError, match=sentence):
    load_system_prompts(folder, queries, tokenize, **numbers)


def test_what_is_no_text_file_is_named(tmp_path, folder):
  queries = tmp_path / "queries.txt"
  queries.write_bytes(b"Hello\n\xff\n")
  with pytest.raises(ValueError, match=r"queries.txt, line 2 is not UTF-8"):
    load_system_prompts(folder, queries, tokenize)
  queries.write_text("Hello")
  (folder / "c.txt").write_bytes(b"\xff\xfe")
  with pytest.raises(ValueError, match=r"c.txt is not UTF-8 text"):
    load_system_prompts(folder, queries, tokenize)
  (folder / "c.txt").unlink()
  (folder / "c.txt").mkdir()
  with pytest.raises(IsADirectoryError, match=r"Is a directory.*c.txt"):
    load_system_prompts(folder, queries, tokenize)
  for read in (
    load_quality,
    lambda path, t: load_system_prompts(folder, path, t),
  ):
    with pytest.raises(IsADirectoryError, match=r"Is a directory.*prompts"):
      read(folder, tokenize)
