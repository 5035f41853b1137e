"""Where and when something was measured, for reports that are kept."""

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def environment() -> dict[str, object]:
  """Tells machine, versions and date.

  Returns:
    Three entries, ready for JSON.

  >>> sorted(environment())
  ['date', 'machine', 'versions']
  """
  versions = {name: metadata.version(name) for name in _PACKAGES}
  return {
    "date": datetime.date.today().isoformat(),
    "machine": f"{_processor()}, {os.cpu_count()} cores",
    "versions": {"python": platform.python_version(), **versions},
  }


def _processor() -> str:
  """The processor's name where the system tells it."""
  info = Path("/proc/cpuinfo")
  if info.exists():
    for line in info.read_text(encoding="utf-8").splitlines():
      if line.startswith("model name"):
        return f"{line.partition(':')[2].strip()} ({platform.machine()})"
  return platform.processor() or platform.machine()
