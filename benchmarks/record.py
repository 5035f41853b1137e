"""What every result file says about where it was measured."""

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def _processor() -> str:
  """The processor's name where the system tells it."""
  info = Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
  """Machine, versions and date, for a result that is kept."""
  versions = {name: metadata.version(name) for name in _PACKAGES}
  return {
    "date": datetime.date.today().isoformat(),
    "machine": f"{_processor()}, {os.cpu_count()} cores",
    "versions": {"python": platform.python_version(), **versions},
  }


def write_result(path: str | Path, result: dict[str, Any]) -> None:
  """Writes a result with its environment as JSON; missing folders are made."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  content = json.dumps(environment() | result, indent=2)
  path.write_text(content + "\n", encoding="utf-8")
