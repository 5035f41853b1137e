"""Text that shares long prefixes: documents with questions, system prompts.

The loaders take a tokenizer, any callable from text to token ids, so that this
folder needs no model.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_prefix_jax.workloads.lines import json_lines, numbered_lines
from sparse_prefix_jax.workloads.request import Trace, token_trace

Tokenize = Callable[[str], Sequence[int]]
"""Text to token ids."""


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
  """Reads the QuALITY release: one prompt per question, article first.

  Args:
    path: JSON lines with `article` and `questions[].question`; may be
      compressed. Lines with an equal article are one group.
    tokenize: text to token ids.
    separator: text between article and question.

  Returns:
    A trace of token ids, in file order.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a malformed file (with the line number) or an empty one.
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
      rows.append(np.asarray(tokenize(article + separator + question)))
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
    tokenize: text to token ids.
    count: number of requests, at least 1.
    seed: of the draws.
    separator: text between system prompt and query.

  Returns:
    A trace of token ids; a group per system prompt.

  Raises:
    FileNotFoundError: there is no such file or folder.
    ValueError: nothing to read, or a malformed line (with its number).
  """
  if count < 1:
    raise ValueError(f"count must be at least 1, got {count}")
  prompts, asked = _system_prompts(Path(folder)), _queries(Path(queries))
  random = np.random.RandomState(seed)
  groups = random.randint(len(prompts), size=count)
  chosen = random.randint(len(asked), size=count)
  rows = [
    np.asarray(tokenize(prompts[group] + separator + asked[query]))
    for group, query in zip(groups, chosen)
  ]
  return token_trace(Path(folder).name, rows, groups.tolist())


def _system_prompts(folder: Path) -> list[str]:
  """The texts of a folder, in order of file name."""
  if not folder.is_dir():
    raise FileNotFoundError(f"there is no folder {folder}")
  files = sorted(p for p in folder.iterdir() if p.suffix in (".txt", ".md"))
  texts = [p.read_text(encoding="utf-8") for p in files]
  texts = [text for text in texts if text.strip()]
  if not texts:
    raise ValueError(f"{folder.name} has no system prompts (.txt or .md)")
  return texts


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
