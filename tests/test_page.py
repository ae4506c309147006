"""Pieces of pages: pictures that others can read, bars inside their limits."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from alpro_jax.evaluation import page, pictures

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)


def macros():
  return page.environment().get_template('macros.html').module


def test_a_strip_is_a_png_that_others_read():
  source, width = pictures.encode_strip(FRAMES)
  kind, data = source.split(',')
  assert kind == 'data:image/png;base64'
  decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
  np.testing.assert_array_equal(decoded, pictures.film_strip(FRAMES))
  assert width == 4 * decoded.shape[1]  # 24 pixels are shown as 96.


def test_film_strip():
  strip = pictures.film_strip(FRAMES, gap=2)
  assert strip.shape == (24, 4 * 24 + 3 * 2, 3)
  np.testing.assert_array_equal(strip[:, 26:50], FRAMES[1])
  assert (strip[:, 24:26] == 255).all()


def test_thumbnails_are_few_and_small():
  np.testing.assert_array_equal(pictures.thumbnails(FRAMES), FRAMES)
  few = pictures.thumbnails(np.repeat(FRAMES, 2, 0), count=4)
  np.testing.assert_array_equal(few, FRAMES)
  flat = np.full((3, 225, 300, 3), 7, np.uint8)
  small = pictures.thumbnails(flat, side=112)
  assert small.shape == (3, 75, 100, 3) and (small == 7).all()


def test_heat_is_red_for_and_blue_against():
  grey = np.full((1, 4, 4, 3), 128, np.uint8)
  red, blue, none = (
    pictures.heat(grey, np.full((1, 2, 2), x), signed=True)[0, 0, 0] for x in (1.0, -1.0, 0.0)
  )
  assert red[0] > 180 > red[2] and blue[2] > 150 > blue[0]
  assert len(set(none.tolist())) == 1


def test_what_lies_outside_a_region_fades():
  region = np.zeros((2, 2), bool)
  region[1, 1] = True
  shown = pictures.outline(FRAMES, region)
  np.testing.assert_array_equal(shown[:, 13:23, 13:23], FRAMES[:, 13:23, 13:23])
  assert (shown[:, 12, 12] == (214, 69, 0)).all()
  assert (shown[:, :12] >= 150).all()


def test_light_and_dark_have_the_same_colours_and_enough_contrast():
  style = (page.TEMPLATES / 'style.css').read_text()
  light, dark = (
    dict(re.findall(r'--([\w-]+): #(\w{6})', style[style.index(start) :].partition('}')[0]))
    for start in (':root {', '@media (prefers-color-scheme: dark)')
  )
  assert light.keys() == dark.keys() and 'ink' in light
  # Every other rule names a colour of these.
  assert len(re.findall(r'#[0-9a-f]{3,6}\b', style)) == len(light) + len(dark)

  def contrast(one, other):  # As WCAG 2 defines it.
    bright = []
    for colour in (one, other):
      parts = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)]) / 255
      linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
      bright.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(bright) / min(bright)

  assert contrast('000000', 'ffffff') == pytest.approx(21)
  for colours in (light, dark):
    for text in ('ink', 'soft', 'good', 'bad', 'for', 'against'):
      assert contrast(colours[text], colours['paper']) >= 4.5, text
    for text, under in (('ink', 'tint-bad'), ('soft', 'tint-good'), ('good', 'tint-good')):
      assert contrast(colours[text], colours[under]) >= 4.5, text
    for mark in ('chance', 'blue', 'ink'):
      assert contrast(colours[mark], colours['empty']) >= 3, mark


def test_nothing_is_wider_than_a_phone():
  style = (page.TEMPLATES / 'style.css').read_text()
  assert re.search(r'^img { max-width: 100%', style, re.M)
  for pixels in re.findall(r'(?<![-\w(])(?:min-)?width: *(\d+)px|minmax\((\d+)px', style):
    assert int(''.join(pixels)) <= 320


def test_bars_stay_inside():
  bar = macros().bar(130, interval=(-5, 120), chance=50)
  assert 'width:100.0%"></b>' in bar
  assert 'left:0.0%;width:100.0%' in bar
  assert 'class="chance" style="left:50.0%' in bar and 'target' not in bar


def test_everything_is_escaped():
  made = macros()
  text = made.facts([('<c>', '<d>'), ('empty', '')])
  text += made.table(page.Table(['<f>'], [('<g>',)]))
  text += made.warn('<a>') + made.mark('<b>') + made.shares([('<e>', 0.5)])
  for letter in 'abcdefg':
    assert f'&lt;{letter}&gt;' in text
  assert 'empty' not in text and '>0.50<' in text
  assert made.table(None) == made.table(page.Table(['x'], [])) == ''


def test_a_page_misses_nothing_that_it_prints():
  with pytest.raises(page.jinja2.UndefinedError, match='title'):
    page.render('base.html')
