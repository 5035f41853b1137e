"""The page, in a browser without a screen: `make test-page`."""

import re
import shutil

import pytest

from sparse_prefix_jax import extras
from sparse_prefix_jax.serving.server import app
from tests.serving.server.process import Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
  *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
  *("--disable-background-networking", "--disable-component-update"),
  "--disable-sync",
)
DESKTOP, PHONE = (1100, 760), (390, 844)


def test_browsers_let_the_page_ask_its_own_server_alone():
  policy = dict(x.split(" ", 1) for x in app.PAGE_POLICY.split("; "))
  assert policy["default-src"] == "'none'"
  assert policy["connect-src"] == "'self'"


@pytest.fixture(scope="module")
def server():
  one = Server()
  yield one
  one.end()


@pytest.fixture(scope="module")
def chromium():
  """The browser of this machine; without one there is nothing to test."""
  found = [path for path in map(shutil.which, NAMES) if path]
  if not found:
    pytest.exit(
      "the page is tested in Chromium, and none is on the PATH: install it "
      "(Debian and Ubuntu: apt-get install chromium)",
      returncode=2,
    )
  playwright = extras.optional("playwright.sync_api", "browser")
  with playwright.sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=found[0], args=FLAGS)
    yield browser
    browser.close()


class Visit:
  """Somebody at the page; notes what it asks for and complains about."""

  def __init__(self, browser, url, size, scheme="light"):
    width, height = size
    self.page = browser.new_page(
      viewport={"width": width, "height": height}, color_scheme=scheme
    )
    self.asked, self.wrong = [], []
    self.page.on("request", lambda one: self.asked.append(one.url))
    self.page.on("pageerror", lambda one: self.wrong.append(str(one)))
    self.page.on(
      "console",
      lambda one: self.wrong.append(one.text) if one.type == "error" else None,
    )
    self.page.goto(url)
    self.page.locator("#status", has_text="serves").wait_for()

  def ask(self, text, most):
    """Sends a message, and waits for the end of the answer."""
    page = self.page
    page.evaluate(f"document.getElementById('most').value = {most}")
    page.fill("#text", text)
    page.press("#text", "Enter")
    self.wait()

  def wait(self):
    """Until nothing is answered any more."""
    self.page.locator("#send", has_text="Send").wait_for(timeout=120_000)

  def texts(self, selector):
    return self.page.locator(selector).all_text_contents()

  def counters(self):
    """The figures by their words, without the share in percent."""
    told = self.page.locator("#counters > div").all_inner_texts()
    pairs = [x.split("\n") for x in told]
    return {re.sub(r"\s\d+\s%", "", w): v.replace(",", "") for v, w in pairs}

  def too_wide(self):
    """What reaches past the sides of the screen."""
    return self.page.evaluate("""() => [...document.querySelectorAll("body *")]
      .filter((one) => one.getBoundingClientRect().right > innerWidth + 1
        || one.getBoundingClientRect().left < -1)
      .map((one) => one.outerHTML.slice(0, 80))""")

  def end(self):
    self.page.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def visit(request, chromium, server):
  one = Visit(chromium, server.url, request.param)
  yield one
  one.end()


NOTE = re.compile(r"prompt of (\d+) tokens: (\d+) restored, (\d+) computed")


def parts(visit):
  """Tokens, restored and computed, under each answer."""
  return [
    tuple(map(int, NOTE.search(text).groups()))
    for text in visit.texts(".parts")
  ]


@pytest.mark.browser
def test_a_conversation(visit, server):
  """Two turns: the second restores what the first left."""
  page = visit.page
  # Desktop and phone tell apart: nothing of the first is there for the second.
  start = f"{page.viewport_size['width']} people . "
  before = visit.counters()
  page.click("#example")
  visit.ask(start + page.input_value("#text"), 1)
  assert visit.texts(".assistant") == ["Oslo"]
  visit.ask("And where does Anna Berg live ? In", 3)
  first, second = parts(visit)
  assert first[1] == 0 and second[1] >= 64
  assert all(a == b + c for a, b, c in (first, second))
  visit.page.locator("#counters > div", has_text="restored").locator(
    "b", has_text=re.compile("[1-9]")
  ).wait_for()
  after = visit.counters()
  moved = {word: int(after[word]) - int(before[word]) for word in after}
  assert moved["prompts"] == 2
  assert moved["prompt tokens"] == first[0] + second[0]
  assert moved["restored"] == second[1]
  assert int(after["states kept"]) >= 1
  assert_picture(visit, [first, second])
  assert visit.too_wide() == []
  page.click("summary")
  assert visit.too_wide() == []
  assert all(url.startswith(server.url) for url in visit.asked)
  assert visit.wrong == []


def assert_picture(visit, told):
  """Rows on one scale: a part per kind, the states, and what was hit."""
  rows = visit.page.locator("#picture .turn")
  assert rows.count() == len(told)
  ends = []
  for i, (tokens, restored, _) in enumerate(told):
    row = rows.nth(i)
    widths = row.locator("rect").evaluate_all(
      "(all) => all.map((one) => one.getBoundingClientRect().width)"
    )
    assert widths[0] / sum(widths[:2]) == pytest.approx(
      restored / tokens, abs=0.01
    )
    assert row.locator("circle").count() == (restored > 0)
    assert row.locator("line").count() >= 1
    ends.append(sum(widths))
  assert ends == sorted(ends)


def wait_for_length(page, size):
  """Until so many letters of an answer have come."""
  letters = re.compile(f".{{{size}}}", re.DOTALL)
  page.locator(".assistant", has_text=letters).wait_for()


@pytest.mark.browser
def test_an_answer_streams_and_is_stopped(visit):
  page = visit.page
  page.evaluate("document.getElementById('most').value = 3000")
  page.fill("#text", "Anna Berg lives in Oslo .")
  page.press("#text", "Enter")
  said = page.locator(".assistant")
  wait_for_length(page, 20)
  early = said.text_content()
  wait_for_length(page, len(early) + 20)
  assert said.text_content().startswith(early)
  assert visit.counters()["running"] in ("0", "1")
  page.click("#send")
  visit.wait()
  assert "stopped" in visit.texts(".parts")
  page.locator("#counters > div", has_text="running").locator(
    "b", has_text=re.compile("^0$")
  ).wait_for()
  page.click("summary")
  page.click("#again")
  assert visit.texts(".message") == [] and page.locator("#empty").is_visible()
  assert visit.wrong == []


@pytest.mark.browser
def test_what_is_refused_is_told_and_can_be_sent_again(visit):
  visit.ask("Anna", 0)
  (told,) = visit.texts("#talk .wrong")
  assert told.startswith("max_tokens is 0; it must be")
  visit.ask(visit.page.input_value("#text"), 1)
  assert len(visit.texts(".assistant")) == 1


@pytest.mark.browser
def test_a_server_that_has_gone_and_a_key_that_is_missing(chromium, tmp_path):
  keys = tmp_path / "keys"
  keys.write_text("one\n")
  server = Server(f"--api_keys={keys}")
  try:
    page = chromium.new_page()
    page.goto(server.url)
    status = page.locator("#status")
    status.get_by_text("the API key is missing or not known.").wait_for()
    assert page.locator("#key").is_visible()
    page.fill("#key", "one")
    page.press("#key", "Tab")
    page.locator("#status", has_text="serves").wait_for()
  finally:
    server.end()
  page.fill("#text", "Anna Berg")
  page.press("#text", "Enter")
  gone = "The server does not answer."
  page.locator("#talk .wrong", has_text=gone).wait_for()
  page.locator("#status", has_text=gone).wait_for()
  assert page.input_value("#text") == "Anna Berg"
  # Whatever is served there next, its name is asked for.
  assert page.evaluate("model") == ""
  page.close()


LUMINANCE = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((x) => x / 255)
    .map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (above, below) => {
    const [r, g, b, a = 1] = rgb(above);
    return [r, g, b].map((x, i) => x * a + below[i] * (1 - a));
  };
  const ground = (one) => one
    ? over(getComputedStyle(one).backgroundColor, ground(one.parentElement))
    : matchMedia("(prefers-color-scheme: dark)").matches
      ? [18, 18, 18] : [255, 255, 255];
  return [...document.querySelectorAll("body *:not(script):not(svg *)")]
    .filter((one) => [...one.childNodes].some(
      (x) => x.nodeType === 3 && x.data.trim()))
    .map((one) => {
      const below = ground(one);
      const [a, b] = [light(over(getComputedStyle(one).color, below)),
                      light(below)].sort((x, y) => y - x);
      return [one.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)];
    }).filter(([, ratio]) => ratio < 4.5);
}"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(chromium, server, scheme):
  """The contrast that WCAG 2.1 asks of small text, 4.5, everywhere."""
  visit = Visit(chromium, server.url, PHONE, scheme)
  visit.ask("Anna Berg lives in Oslo .", 0)
  visit.ask("Anna Berg lives in Oslo .", 2)
  visit.page.click("summary")
  assert visit.page.evaluate(LUMINANCE) == []
  visit.end()
