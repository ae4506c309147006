"""The page of a search in a browser: type, see, play, filter, ask, export, by keys alone."""

import json
import shutil
import time

import pytest
from playwright import sync_api

from alpro_jax.data.cut import CutVideo, Segment
from alpro_jax.evaluation.encoder import Answers
from alpro_jax.search import server
from tests import patience
from tests.test_server import NAMES, serve, service  # noqa: F401

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no chromium is installed')


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    yield browser
    browser.close()


@pytest.fixture(scope='module')
def address(service):  # noqa: F811
  port, end = serve(server.make_app(service))
  yield f'http://127.0.0.1:{port}/'
  end()


@pytest.fixture
def page(browser, address):
  page = browser.new_page(viewport={'width': 1280, 'height': 900})
  page.set_default_timeout(1000 * patience.seconds(60))
  errors = []
  page.on('pageerror', lambda error: errors.append(error))
  page.goto(address)
  yield page
  assert not errors
  page.close()


def wait(page, expression, arg=None):
  """Until it is true; Playwright's own way is what the page's policy forbids: eval."""
  end = time.monotonic() + patience.seconds(30)
  while not page.evaluate(expression, arg):
    assert time.monotonic() < end, expression
    page.wait_for_timeout(50)


def search(page, text='a dog', cards=5):
  page.fill('#q', text)
  page.press('#q', 'Enter')
  wait(page, f'document.querySelectorAll("article").length === {cards}')


def card(page, name):
  return page.locator('article', has=page.get_by_text(name, exact=True))


def test_hits_are_shown_and_played(page):
  assert '5 videos in' in page.inner_text('#said')
  search(page)
  assert '11 moments in 5 videos for “a dog”' in page.inner_text('#said')
  # A name is a name, whatever is in it.
  assert card(page, NAMES[1].decode()).count() == 1 and not page.locator('.name i').count()
  own = card(page, 'a.mp4')
  assert own.locator('.line button').count() == 3
  own.locator('.line button').nth(1).click()  # By matches: the second is 1 to 2 s.
  playing = 'x => !x.paused && x.currentTime >= 1 && x.currentTime < 2'
  wait(page, playing, own.locator('video').element_handle())
  assert own.locator('.span').inner_text() == '0:01.0 – 0:02.0'
  own.get_by_text('Pause').click()
  assert own.locator('video').evaluate('x => x.paused')
  # What the browser does not play is copied for it.
  other = card(page, 'c.avi')
  other.get_by_text('Play', exact=True).click()
  copied = 'x => x.src.endsWith(".mp4") && x.videoWidth && x.currentTime > 0'
  wait(page, copied, other.locator('video').element_handle())


def test_filters_and_what_is_like_a_hit(page):
  page.get_by_text('Filters').click()
  page.fill('[name=below]', 'sub/')
  search(page, cards=1)
  page.get_by_text('More like this').click()
  wait(page, 'document.querySelector("#said").innerText.includes("what is like sub/b")')
  page.fill('[name=below]', 'nowhere')
  search(page, cards=0)
  assert 'are the filters too narrow?' in page.inner_text('#said')


def test_questions_reasons_and_mistakes(page, service, monkeypatch):  # noqa: F811
  cut = CutVideo((Segment(0.0, 1.0, (), b''),))
  monkeypatch.setattr(server, 'decode', lambda *_, **__: iter([cut]))
  monkeypatch.setattr(server.explain, 'explain', lambda *asked: asked[-1])
  monkeypatch.setattr(server.explain, 'render', lambda text: f'<p>because of {text}</p>')
  said = Answers(0.0, 1.0, [('<b>red</b>', 0.75)], True)
  monkeypatch.setattr(service.answering, 'ask', lambda *_: (said, [said]), raising=False)
  search(page)
  own = card(page, 'a.mp4')
  own.get_by_text('Ask', exact=True).click()
  page.keyboard.type('which colour?')
  page.keyboard.press('Enter')
  assert page.locator('#asking li').inner_text() == '<b>red</b> 75.0 %'
  page.keyboard.press('Escape')
  own.get_by_text('Why').click()
  assert page.frame_locator('iframe').locator('p').inner_text() == 'because of a dog'
  page.locator('#showing').get_by_text('Close').click()

  def fail(*_, **__):
    raise ValueError('the index is <gone>.')

  monkeypatch.setattr(server.querying, 'find', fail)
  page.press('#q', 'Enter')
  wait(page, 'document.querySelector("#said").innerText === "the index is <gone>."')


def test_the_list_is_saved(page):
  search(page)
  for form in ('csv', 'json', 'otio'):
    with page.expect_download() as waiting:
      page.locator(f'#exports [data-form={form}]').click()
    assert waiting.value.suggested_filename == f'hits.{form}'
    text = open(waiting.value.path()).read()
    assert 'a.mp4' in text if form == 'csv' else json.loads(text)


def test_by_keyboard_alone(page):
  page.locator('body').evaluate('() => document.activeElement.blur()')
  page.keyboard.press('/')
  page.keyboard.type('a cat')
  page.keyboard.press('Enter')
  page.wait_for_selector('article')
  assert 'a cat' in page.locator('#recent').evaluate('x => [...x.children].map(y => y.value)')
  page.locator('#q').evaluate('x => x.blur()')
  number = '() => [...document.querySelectorAll("article")].indexOf(document.activeElement)'
  for pressed, wanted in (('ArrowRight', 0), ('ArrowRight', 1), ('ArrowLeft', 0), ('ArrowDown', 3)):
    page.keyboard.press(pressed)
    assert page.evaluate(number) == wanted
  page.keyboard.press('ArrowUp')
  page.keyboard.press('Enter')
  wait(page, '[...document.querySelectorAll("video")].some(x => !x.paused)')
  page.keyboard.press('Escape')
  assert page.evaluate('[...document.querySelectorAll("video")].every(x => x.paused)')
  assert page.evaluate('document.activeElement.id') == 'q'


def test_it_fits_a_phone_and_is_read_aloud(page):
  page.set_viewport_size({'width': 400, 'height': 800})
  search(page)
  assert page.evaluate('document.documentElement.scrollWidth') <= 400
  names = page.locator('button:visible, input:visible, article, video')
  for one in names.all():
    assert one.evaluate('x => x.ariaLabel || x.title || x.innerText || x.labels?.length')
  # What cannot be read while an index is being made.
  wait(page, '!document.querySelector("#unread").hidden')
  assert '2 videos are still to be indexed' in page.inner_text('#unread')
  assert page.title() == 'Search (2 videos to index)'
