"""Writes what a benchmark found, and where it was measured."""

import json
from pathlib import Path
from typing import Any

from sparse_prefix_jax.machine import environment


def write_result(path: str | Path, result: dict[str, Any]) -> None:
  """Writes a result with its environment as JSON; missing folders are made."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  content = json.dumps(environment() | result, indent=2)
  path.write_text(content + "\n", encoding="utf-8")
