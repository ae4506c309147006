"""What every page is made of: pictures, bars, tables, one style.

A page stands alone: style and pictures are inside the file, nothing is
fetched. Every text goes through `escape`.
"""

import base64
import html
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
  """Rows of text and numbers; the first column is text."""

  columns: Sequence[str]
  rows: Sequence[Sequence]


def document(title: str, top: str, sections: Iterable[tuple[str, str]]) -> str:
  """Returns a whole page.

  Args:
    title: plain text.
    top: HTML below the title.
    sections: plain title and HTML of each; one without HTML is left out.
  """
  body = ''.join(
      f'<section><h2>{escape(name)}</h2>{content}</section>'
      for name, content in sections if content)
  return (
      '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width,initial-scale=1">'
      f'<title>{escape(title)}</title><style>{_STYLE}</style></head><body>'
      f'<main><h1>{escape(title)}</h1>{top}{body}</main></body></html>\n')


def escape(text) -> str:
  """Plain text as HTML; a number and its sign stay on one line."""
  return html.escape(str(text)).replace(' %', '\N{NO-BREAK SPACE}%')


def format_figure(value: float, percent: bool = True) -> str:
  """97.46 -> '97.5 %'; 3.0 without percent -> '3'."""
  if percent:
    return f'{value:.1f} %'
  return f'{value:.0f}' if value == round(value) else f'{value:.2f}'


def table(content: Table | None) -> str:
  """'' for a table without rows; all but the first column is to the right."""
  if content is None or not content.rows:
    return ''

  def cells(row):
    return ''.join(
        f'<td{" class=number" if i else ""}>{escape(_cell(cell))}</td>'
        for i, cell in enumerate(row))

  head = ''.join(f'<th>{escape(name)}</th>' for name in content.columns)
  rows = ''.join(f'<tr>{cells(row)}</tr>' for row in content.rows)
  return f'<table class="plain"><tr>{head}</tr>{rows}</table>'


def _cell(value):
  if value is None or isinstance(value, str):
    return value or ''
  return f'{value:,}' if isinstance(value, int) else f'{value:.1f}'


def facts(rows: Iterable[tuple[str, str]]) -> str:
  """What -> how it was, both plain text; rows without a value are left out."""
  lines = ''.join(
      f'<tr><td>{escape(what)}</td><td>{escape(value)}</td></tr>'
      for what, value in rows if value)
  return lines and f'<table class="plain facts">{lines}</table>'


def figure(value: str, title: str, body: str) -> str:
  """A large figure beside what it says; value is plain text."""
  return (f'<div class="figure"><div class="value">{escape(value)}</div><div>'
          f'<h3>{title}</h3>{body}</div></div>')


def bar(
    percent: float, *, interval: tuple[float, float] | None = None,
    marks: Iterable[tuple[str, float | None]] = (), wide: bool = False,
) -> str:
  """A bar from 0 to 100 %.

  Args:
    percent: its length.
    interval: drawn as a line across its end.
    marks: (kind, place) of ticks, kind 'nothing' or 'target'; a place may be
      None.
    wide: with space around it.
  """
  ends = ''
  if interval is not None:
    low, high = (min(max(x, 0), 100) for x in interval)
    ends = f'<u style="left:{low:.1f}%;width:{max(high - low, .4):.1f}%"></u>'
  ticks = ''.join(
      f'<i class="{kind}" style="left:{min(max(at, 0), 100):.1f}%"></i>'
      for kind, at in marks if at is not None)
  return (f'<div class="bar{" wide" if wide else ""}"><b style="width:'
          f'{min(max(percent, 0), 100):.1f}%"></b>{ends}{ticks}</div>')


def image(pixels: np.ndarray, label: str = 'frames of a clip') -> str:
  """uint8[H, W, 3] -> a picture inside the page."""
  # Small pictures are enlarged by whole pixels, large ones shrunk to fit.
  scale = max(int(round(84 / pixels.shape[0])), 1)
  data = base64.b64encode(encode_png(pixels)).decode()
  return (f'<img alt="{escape(label)}" width="{pixels.shape[1] * scale}" '
          f'src="data:image/png;base64,{data}">')


def encode_png(image: np.ndarray) -> bytes:
  """uint8[H, W, 3] -> a PNG file."""
  height, width, _ = image.shape

  def chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

  # Every row starts with the number of its filter, 0 for none.
  rows = np.zeros((height, 1 + 3 * width), np.uint8)
  rows[:, 1:] = image.reshape(height, 3 * width)
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
          + chunk(b'IDAT', zlib.compress(rows.tobytes(), 9))
          + chunk(b'IEND', b''))


def film_strip(frames: np.ndarray, gap: int = 2) -> np.ndarray:
  """uint8[T, H, W, 3] -> the frames side by side on white."""
  t, h, w, _ = frames.shape
  strip = np.full((h, t * w + (t - 1) * gap, 3), 255, np.uint8)
  for i, frame in enumerate(frames):
    strip[:, i * (w + gap):i * (w + gap) + w] = frame
  return strip


def thumbnails(
    frames: np.ndarray, count: int = 4, side: int = 112
) -> np.ndarray:
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
  blocks = frames[:, :h * factor, :w * factor].reshape(
      count, h, factor, w, factor, 3)
  return blocks.mean((2, 4)).round().astype(np.uint8)


_STYLE = '''
:root{--ink:#1c2430;--soft:#5d6875;--line:#dfe3e8;--paper:#fbfaf7;
--blue:#2c5f8a;--good:#2e7d4f;--bad:#b4451f}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 Georgia,'Iowan Old Style','Times New Roman',serif}
main{max-width:860px;margin:0 auto;padding:48px 24px 96px}
h1{font-size:34px;line-height:1.2;margin:0 0 16px;font-weight:600}
h2{font-size:23px;margin:56px 0 12px;font-weight:600;
border-top:1px solid var(--line);padding-top:24px}
h3{font-size:17px;margin:0 0 4px;font-weight:600}
p{margin:4px 0 10px;max-width:66ch}
table,.bar,.value,.goal,.legend,.rank,.good,.bad,svg,figcaption,pre,code{
font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
.warning{border:1px solid var(--bad);background:#fdf0ea;padding:10px 14px;
border-radius:4px}
.figure{display:grid;grid-template-columns:116px 1fr;gap:20px;padding:14px 0;
border-bottom:1px solid var(--line)}
.value{font-size:27px;text-align:right;font-variant-numeric:tabular-nums;
line-height:1.15}
.goal,.legend{color:var(--soft);font-size:13px;margin:2px 0 4px}
.good,.bad,.rank{font-size:12px;font-weight:400;margin-left:10px;
padding:1px 7px;border-radius:9px;color:#fff;background:var(--good);
white-space:nowrap}
.bad{background:var(--bad)}.rank{background:var(--soft)}
.bar{position:relative;background:#e9ecf0;height:9px;border-radius:2px;
min-width:140px}
.bar.wide{margin:6px 0;height:10px}
.bar b{position:absolute;left:0;top:0;bottom:0;background:var(--blue);
border-radius:2px}
.bar i,.legend i{position:absolute;top:-3px;bottom:-3px;width:2px;
background:var(--ink)}
i.nothing{background:#a9b1ba!important}
.legend i{position:static;display:inline-block;height:13px;margin:0 3px -2px}
.search{margin:20px 0}
figure{margin:0 0 6px}
figcaption{font-size:13px;color:var(--soft)}
img{max-width:100%;image-rendering:pixelated;display:block;border-radius:2px}
.region{display:grid;grid-template-columns:auto 1fr;gap:24px;margin:18px 0;
align-items:start}
.region img{max-width:440px}
.region p{font-size:14px;margin:4px 0}.caption{color:var(--soft)}
.true,tr.true td:first-child{color:var(--good);font-weight:600}
table{border-collapse:collapse;font-size:14px}
.bars{width:100%}.bars td{padding:2px 10px 2px 0;white-space:nowrap}
.bars td:nth-child(2){width:70%}
.region .bars td:nth-child(2){width:50%}.region .bar{min-width:60px}
.plain th,.plain td{padding:4px 18px 4px 0;border-bottom:1px solid var(--line);
text-align:left;vertical-align:top}
.plain th{color:var(--soft);font-weight:400}
.plain th:not(:first-child){text-align:right}
.number{text-align:right!important;font-variant-numeric:tabular-nums}
code{font-size:13px;overflow-wrap:anywhere}
pre{font:12px/1.5 ui-monospace,'DejaVu Sans Mono',monospace;background:#f1f2ee;
padding:12px;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;
border-radius:4px}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));
gap:14px 18px}
.curve b{color:var(--ink);font-weight:600}
svg{width:100%;display:block}
svg text{font-size:10px;fill:var(--soft)}
svg .grid{stroke:var(--line)}
svg .level{stroke:var(--soft);stroke-dasharray:3 3}
svg polyline{fill:none;stroke:var(--blue);stroke-width:1.8;
stroke-linejoin:round}
.bar u{position:absolute;top:3px;bottom:3px;background:var(--ink);
opacity:.75;border-radius:1px}
.legend u{display:inline-block;width:22px;height:4px;background:var(--ink);
opacity:.75;margin:0 3px 3px}
.bars th{color:var(--soft);font-weight:400;text-align:left;
padding:2px 10px 4px 0}
.bars th.number{padding-left:14px}
.facts{width:100%}
.facts td:first-child{width:170px;color:var(--soft);white-space:nowrap}
.facts td{overflow-wrap:anywhere}
.case{margin:26px 0 30px}
.case h3 .rank,.case h3 .good,.case h3 .bad{vertical-align:2px}
.clips{display:grid;grid-template-columns:repeat(3,1fr);gap:12px 14px;
margin-top:8px}
.clips figure{margin:0;padding:5px;border-radius:5px;
border:2px solid transparent}
.clips img,.asked img{width:100%}
.clips figcaption{overflow-wrap:anywhere;line-height:1.35;margin-top:3px}
.clips .right{border-color:var(--good);background:#eef6f0}
.clips .right b{color:var(--good)}
.asked{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:24px;
align-items:start;margin-top:8px}
.asked .bars td:nth-child(2){width:45%}.asked .bar{min-width:40px}
.asked .bars td:first-child{white-space:normal;overflow-wrap:anywhere}
.asked p{font-size:14px;margin:6px 0 0}
.figures{margin:14px 0 22px}.figures td:nth-child(2){width:42%}
.figures td,.figures th{padding-top:4px;padding-bottom:4px}
.figures .number,.orders .number{padding-left:12px}
.orders{overflow-x:auto;margin:8px 0}.orders table{font-size:13px}
.orders th,.orders td{padding-right:10px}
.false{color:var(--bad);font-weight:600}
@media(max-width:640px){.figure,.region,.asked{grid-template-columns:1fr}
.clips{grid-template-columns:1fr 1fr}
.value{text-align:left}}
@media print{body{background:#fff}section{break-inside:avoid}}
'''
