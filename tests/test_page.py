"""Pieces of pages: pictures that others can read, bars inside their limits."""

import io

import numpy as np
import pytest

from alpro_jax.evaluation import page

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)


def test_png_is_what_others_read():
  image = pytest.importorskip('PIL.Image')
  decoded = image.open(io.BytesIO(page.encode_png(FRAMES[0])))
  np.testing.assert_array_equal(np.asarray(decoded), FRAMES[0])


def test_film_strip():
  strip = page.film_strip(FRAMES, gap=2)
  assert strip.shape == (24, 4 * 24 + 3 * 2, 3)
  np.testing.assert_array_equal(strip[:, 26:50], FRAMES[1])


def test_thumbnails_are_few_and_small():
  np.testing.assert_array_equal(page.thumbnails(FRAMES), FRAMES)
  few = page.thumbnails(np.repeat(FRAMES, 2, 0), count=4)
  np.testing.assert_array_equal(few, FRAMES)
  flat = np.full((3, 225, 300, 3), 7, np.uint8)
  small = page.thumbnails(flat, side=112)
  assert small.shape == (3, 75, 100, 3) and (small == 7).all()


def test_bars_stay_inside():
  bar = page.bar(130, interval=(-5, 120), marks=(
      ('nothing', 50), ('target', None)))
  assert 'width:100.0%"></b>' in bar
  assert 'left:0.0%;width:100.0%' in bar
  assert 'class="nothing" style="left:50.0%' in bar and 'target' not in bar


def test_everything_is_escaped():
  text = page.document('<a>', '', [
      ('<b>', page.facts([('<c>', '<d>'), ('empty', '')])),
      ('<e>', page.table(page.Table(['<f>'], [('<g>',)]))),
      ('left out', '')])
  for letter in 'abcdefg':
    assert f'&lt;{letter}&gt;' in text
  assert 'left out' not in text and 'empty' not in text
  assert page.table(None) == page.table(page.Table(['x'], [])) == ''
