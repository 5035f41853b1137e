"""What docs/results.md says of results that are kept is what they hold."""

import json
import re

import pytest

from benchmarks import policy_bytes, policy_table
from tests.project import checkout

PAGE = checkout.ROOT / "docs" / "results.md"
RESULTS = checkout.ROOT / "benchmarks" / "results"
WORDS = {
  "aot": r"(\d+) programs for TPU v5e, v5p, v6e and tpu7x, (\d+) for an H100",
  "aot_b200": r"(\d+)\s+for a B200",
}


def programs(name: str) -> list[dict[str, object]]:
  """Those that a kernel did not refuse."""
  kept = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
  return [x for x in kept["programs"] if not x.get("refused")]


@pytest.mark.parametrize("name", WORDS)
def test_every_program_compiled_and_works_in_place(name: str) -> None:
  found = programs(name)
  assert found
  assert [x for x in found if not x["in_place"]] == []


def test_the_page_counts_the_programs() -> None:
  text = " ".join(PAGE.read_text("utf-8").split())
  targets = [x["target"] for x in programs("aot")]
  tpus = [x for x in targets if x not in ("h100", "b200")]
  newest = [x["target"] for x in programs("aot_b200")]
  counts = [len(tpus), targets.count("h100"), newest.count("b200")]
  told = [re.search(pattern, text) for pattern in WORDS.values()]
  assert [int(x) for match in told if match for x in match.groups()] == counts


def test_the_page_has_the_table_of_policies() -> None:
  kept = json.loads((RESULTS / "policies.json").read_text(encoding="utf-8"))
  lines = policy_table.table(kept["rows"])
  assert len(lines) >= 20
  assert [x for x in lines if x not in PAGE.read_text("utf-8")] == []


def test_the_page_has_the_table_of_policies_by_bytes() -> None:
  path = RESULTS / "policies_bytes.json"
  lines = policy_bytes.bytes_table(json.loads(path.read_text("utf-8"))["rows"])
  assert len(lines) >= 8
  assert [x for x in lines if x not in PAGE.read_text("utf-8")] == []


def test_the_page_shows_the_pictures_of_policies() -> None:
  text = PAGE.read_text("utf-8")
  pictures = [*(PAGE.parent / "images").glob("policies*.png")]
  assert len(pictures) >= 4
  assert [x.name for x in pictures if f"images/{x.name}" not in text] == []
