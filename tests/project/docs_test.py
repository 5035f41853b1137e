"""The pages for readers: a short README, links that lead somewhere."""

import pathlib
import re

import pytest

from sparse_prefix_jax.commands.command_flags import _COMMAND_FLAGS
from tests.project import checkout

README = checkout.ROOT / "README.md"
DOCS = checkout.ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
README_MAX = 150
FIRST_CODE_BY = 60

LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
COMMAND = re.compile(r"-m sparse_prefix_jax ([a-z_]+)([^`\n\"\\]*)")
IMAGE = re.compile(r"!\[[^\]]*\]\(")


def _name(path: pathlib.Path) -> str:
  return str(path.relative_to(checkout.ROOT))


def _links(page: pathlib.Path) -> list[str]:
  """What a page links to within the checkout."""
  found = [target for target, _ in LINK.findall(page.read_text("utf-8"))]
  return [target for target in found if target and "://" not in target]


def _anchors(page: pathlib.Path) -> set[str]:
  """The names that headings have on the sites that show the page."""
  lines = page.read_text("utf-8").splitlines()
  headings = [line.lstrip("#").strip() for line in lines if line[:1] == "#"]
  plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
  return {"#" + heading.replace(" ", "-") for heading in plain}


def test_the_readme_is_short_and_shows_code_early() -> None:
  lines = README.read_text("utf-8").splitlines()
  assert len(lines) <= README_MAX
  assert lines.index("```python") + 1 <= FIRST_CODE_BY
  assert len(IMAGE.findall("\n".join(lines))) == 1


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_prose_is_narrow_enough_to_read_in_a_terminal(
  page: pathlib.Path,
) -> None:
  """Tables, drawings and what a program printed are as wide as they are."""
  text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text("utf-8"))
  prose = [x for x in text.splitlines() if not x.startswith(("|", "    "))]
  assert [x for x in prose if len(x) > 90] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files_and_headings(page: pathlib.Path) -> None:
  wrong = [x for x in _links(page) if not (page.parent / x).exists()]
  for target, anchor in LINK.findall(page.read_text("utf-8")):
    if anchor and "://" not in target:
      known = _anchors(page.parent / target if target else page)
      wrong += [target + anchor] if anchor not in known else []
  assert not wrong


def test_the_index_links_to_every_page() -> None:
  index = DOCS / "index.md"
  linked = {(DOCS / target).resolve() for target in _links(index)}
  pages = {page.resolve() for page in PAGES if page != index}
  assert pages <= linked


def test_docstrings_name_headings_of_the_design_that_exist() -> None:
  """`docs/design.md, "Heading"`: nobody has the numbered sections."""
  text = (DOCS / "design.md").read_text("utf-8")
  headings = set(re.findall(r"^##+ (.*)$", text, re.MULTILINE))
  named, wrong = re.compile(r'docs/design\.md, "([^"]+)"'), []
  for path in checkout.library_files():
    flat = " ".join(path.read_text("utf-8").split())
    wrong += [
      f"{_name(path)}: {x}" for x in named.findall(flat) if x not in headings
    ]
  assert not wrong


def test_written_commands_have_flags_that_exist() -> None:
  """In pages and notebooks; a line that ends in a backslash goes on."""
  notebooks = (checkout.ROOT / "colab").glob("*.ipynb")
  wrong, count = [], 0
  for page in [*PAGES, *notebooks]:
    text = page.read_text("utf-8").replace("\\\n", " ")
    for command, rest in COMMAND.findall(text):
      named = re.findall(r"--([a-z_]+)", rest)
      count += len(named)
      wrong += [
        f"{_name(page)}: {command} --{flag}"
        for flag in named
        if flag not in _COMMAND_FLAGS[command]
      ]
  assert count > 20 and not wrong, wrong
