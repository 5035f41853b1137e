"""Text that shares long prefixes: documents with questions, system prompts.

The loaders take a tokenizer, any callable from text to token ids, so that this
folder needs no model.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_prefix_jax.workloads.lines import json_lines, numbered_lines
from sparse_prefix_jax.workloads.request import (
  Trace,
  check_number,
  token_row,
  token_trace,
)

Tokenize = Callable[[str], Sequence[int]]
"""A tokenizer: it turns a text into its token ids."""


def _questions(where: str, fields: dict[str, Any]) -> Iterator[str]:
  """The question texts of a line of the QuALITY release."""
  questions = fields.get("questions")
  if not isinstance(questions, list) or not questions:
    raise ValueError(f"{where}: questions must be a list that is not empty")
  for question in questions:
    text = question.get("question") if isinstance(question, dict) else None
    if not isinstance(text, str):
      raise ValueError(f"{where}: every question needs a text `question`")
    yield text


def load_quality(
  path: str | Path, tokenize: Tokenize, separator: str = "\n\n"
) -> Trace:
  r"""Reads the QuALITY release: one prompt per question, article first.

  Args:
    path: JSON lines with `article` and `questions[].question`; may be
      compressed. Lines with an equal article are one group.
    tokenize: a function from text to token ids.
    separator: text between article and question.

  Returns:
    A trace of token ids, in file order.

  Raises:
    OSError: the file cannot be read; there is none, say, or it is a folder.
    ValueError: a malformed file (with the line number), an empty one, or a
      tokenizer that returns no token ids.

  >>> import json, tempfile
  >>> line = {"article": "Once.", "questions": [{"question": "When?"}]}
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = Path(folder, "quality.jsonl")
  ...   _ = path.write_text(json.dumps(line))
  ...   trace = load_quality(path, lambda text: list(text.encode()))
  >>> bytes(trace.requests[0].ids.tolist())
  b'Once.\n\nWhen?'
  """
  path, articles = Path(path), {}
  rows: list[np.ndarray] = []
  groups: list[int] = []
  for number, fields in json_lines(path):
    where = f"{path.name}, line {number}"
    article = fields.get("article")
    if not isinstance(article, str) or not article:
      raise ValueError(f"{where}: article must be a text that is not empty")
    group = articles.setdefault(article, len(articles))
    for question in _questions(where, fields):
      rows.append(token_row(where, tokenize(article + separator + question)))
      groups.append(group)
  return token_trace(path.name, rows, groups)


def load_system_prompts(
  folder: str | Path,
  queries: str | Path,
  tokenize: Tokenize,
  *,
  count: int = 1000,
  seed: int = 42,
  separator: str = "\n\n",
) -> Trace:
  """Pairs system prompts with user queries, both drawn at random.

  Args:
    folder: text files (.txt, .md), one system prompt each.
    queries: a text file with one query per line, or JSON lines with `query`.
    tokenize: a function from text to token ids.
    count: number of requests, at least 1.
    seed: chooses the draws, from 0 to 2**32 - 1.
    separator: text between system prompt and query.

  Returns:
    A trace of token ids; a group per system prompt.

  Raises:
    OSError: a file cannot be read, there is no such folder, or what is named
      like a text file is a folder.
    ValueError: there is nothing to read, a line is malformed (with its number),
      a file is no UTF-8 text, a number is out of range, or the tokenizer
      returns no token ids.
  """
  check_number("count", count, 1, 2**31)
  check_number("seed", seed, 0, 2**32)
  prompts, asked = _system_prompts(Path(folder)), _queries(Path(queries))
  random = np.random.RandomState(seed)
  groups = random.randint(len(prompts), size=count)
  chosen = random.randint(len(asked), size=count)
  name = Path(folder).name
  rows = [
    token_row(
      f"{name}: request {index}",
      tokenize(prompts[group] + separator + asked[query]),
    )
    for index, (group, query) in enumerate(zip(groups, chosen))
  ]
  return token_trace(name, rows, groups.tolist())


def _system_prompts(folder: Path) -> list[str]:
  """The texts of a folder, in order of file name."""
  if not folder.is_dir():
    raise FileNotFoundError(f"there is no folder {folder}")
  files = sorted(p for p in folder.iterdir() if p.suffix in (".txt", ".md"))
  texts = [text for text in map(_whole_text, files) if text.strip()]
  if not texts:
    raise ValueError(f"{folder.name} has no system prompts (.txt or .md)")
  return texts


def _whole_text(path: Path) -> str:
  """The text of a file."""
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError:
    # The error of the codec does not name the file.
    raise ValueError(f"{path.name} is not UTF-8 text") from None


def _queries(path: Path) -> list[str]:
  """The queries of a text file or of JSON lines with `query`."""
  if ".jsonl" not in path.suffixes:
    queries = [line for _, line in numbered_lines(path)]
  else:
    queries = []
    for number, fields in json_lines(path):
      if not isinstance(fields.get("query"), str):
        raise ValueError(f"{path.name}, line {number} needs a text `query`")
      queries.append(fields["query"])
  if not queries:
    raise ValueError(f"{path.name} has no queries")
  return queries
