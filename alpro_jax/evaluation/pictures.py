"""Frames as pictures: strips, thumbnails, outlined regions, heat maps."""

import base64
import functools
import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_ENLARGED = 112  # Pixels of a frame under a heat map, at least.
# Fonts with letters of many scripts that a machine may have: Linux, macOS, Windows.
_FONTS = ('DejaVuSans.ttf', 'Arial Unicode.ttf', 'arial.ttf')
# Of text that is right, wrong, or neither.
_INKS = {True: (0, 110, 50), False: (180, 40, 0), None: (30, 30, 30)}


class Picture(NamedTuple):
  """A picture inside a page: a data: address, and its width in pixels."""

  source: str
  width: int


def encode(data: bytes, kind: str) -> str:
  """Returns a file, such as of kind 'image/png', as an address."""
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def encode_strip(frames: np.ndarray) -> Picture:
  """uint8[T, H, W, 3] -> the frames side by side, as PNG."""
  strip = film_strip(frames)
  file = io.BytesIO()
  Image.fromarray(strip).save(file, 'PNG', optimize=True)
  # Small pictures are enlarged by whole pixels, large ones shrunk to fit.
  scale = max(round(84 / strip.shape[0]), 1)
  return Picture(encode(file.getvalue(), 'image/png'), strip.shape[1] * scale)


def film_strip(frames: np.ndarray, gap: int = 2) -> np.ndarray:
  """uint8[T, H, W, 3] -> uint8[H, T * W + (T - 1) * gap, 3], on white."""
  spaced = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
  return np.concatenate(spaced, axis=1)[:, :-gap]


def captioned(frames: np.ndarray, lines: Sequence[tuple[str, bool | None]]) -> np.ndarray:
  """Draws frames side by side above lines of text.

  Args:
    frames: uint8[T, H, W, 3], of one size for pictures of one width.
    lines: texts, each with whether it is right, which colours it; None is neither. What
      is longer than two rows is cut.
  Returns:
    uint8[H', W', 3], on white.
  """
  strip, font, leading = film_strip(enlarge(frames)), _font(), 18
  width = max(strip.shape[1], 400)
  columns = int(width / font.getlength('n'))
  rows = [
    (row, _INKS[right])
    for text, right in lines
    for row in textwrap.wrap(text, columns, max_lines=2, placeholder=' …')
  ]
  picture = Image.new('RGB', (width, len(strip) + leading * len(rows) + 8), 'white')
  picture.paste(Image.fromarray(strip))
  draw = ImageDraw.Draw(picture)
  for number, (row, ink) in enumerate(rows):
    draw.text((2, len(strip) + 4 + leading * number), row, fill=ink, font=font)
  return np.asarray(picture)


@functools.cache
def _font():
  for name in _FONTS:
    try:
      return ImageFont.truetype(name, 13)
    except OSError:
      continue
  return ImageFont.load_default(14)  # Of Latin letters without accents.


def thumbnails(frames: np.ndarray, count: int = 4, side: int = 112) -> np.ndarray:
  """Few and small enough that many of them fit into a page.

  Args:
    frames: uint8[T, H, W, 3].
    count: frames to keep at most, evenly over time.
    side: height that is kept; larger ones are averaged over whole blocks.
  Returns:
    uint8[min(T, count), h, w, 3].
  """
  t, h, w, _ = frames.shape
  count = min(t, count)
  # The middles of equal parts; all frames where count is t.
  frames = frames[(2 * np.arange(count) + 1) * t // (2 * count)]
  factor = -(-h // side)
  h, w = h // factor, w // factor
  blocks = frames[:, : h * factor, : w * factor].reshape(count, h, factor, w, factor, 3)
  return blocks.mean((2, 4)).round().astype(np.uint8)


def enlarge(frames: np.ndarray) -> np.ndarray:
  """Small frames, enlarged by whole pixels: uint8[T, H', W', 3]."""
  times = max(-(-_ENLARGED // frames.shape[1]), 1)
  return frames.repeat(times, 1).repeat(times, 2)


def outline(frames: np.ndarray, region: np.ndarray) -> np.ndarray:
  """Fades what lies outside a region bool[rows, columns] and frames it."""
  _, h, w, _ = frames.shape
  inside = np.repeat(np.repeat(region, h // region.shape[0], 0), w // region.shape[1], 1)
  inside = np.pad(inside, ((0, h - inside.shape[0]), (0, w - inside.shape[1])))
  near = np.pad(inside, 1)
  core = near[:-2, 1:-1] & near[2:, 1:-1] & near[1:-1, :-2] & near[1:-1, 2:]
  shown = np.where(inside[:, :, None], frames, frames // 3 + 150)
  shown[:, inside & ~core] = (214, 69, 0)
  return shown.astype(np.uint8)


def heat(frames: np.ndarray, maps: np.ndarray, *, signed: bool) -> np.ndarray:
  """Lays maps over grey frames.

  Args:
    frames: uint8[T, H, W, 3].
    maps: float[T, rows, columns] in -1..1; below 0 is blue, above is red.
    signed: whether there is anything below 0.
  Returns:
    uint8[T, H', W', 3], enlarged.
  """
  frames = enlarge(frames).astype(np.float32)
  maps = jax.image.resize(jnp.asarray(maps, jnp.float32), frames.shape[:3], 'linear')
  maps = np.asarray(maps)[..., None]
  grey = frames @ np.array([0.299, 0.587, 0.114], np.float32)
  # Brightened, so that colours stand out of dark clips as well.
  base = 0.55 * grey[..., None] + 90 + np.zeros(3, np.float32)
  strength = np.clip(np.abs(maps), 0, 1) ** 0.8
  red, blue = np.array([205, 38, 20]), np.array([25, 90, 190])
  colour = np.where(maps > 0, red, blue) if signed else red
  mixed = base * (1 - 0.85 * strength) + colour * 0.85 * strength
  return mixed.clip(0, 255).astype(np.uint8)
