"""The report: stands alone, escapes, shows what it is given, in numbers too."""

import html.parser
import json
import re

import numpy as np
import pytest

from alpro_jax.evaluation import page
from examples.shapes import report

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)


class Page(html.parser.HTMLParser):
  """Collects tags, and checks that they are closed in order."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.open, self.text = [], [], ''
    self.feed(page)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ('meta', 'img', 'line', 'polyline', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def readable(text):
  """The page, after checking what a phone and a screen reader need of it."""
  made = Page(text)
  viewport = [x['content'] for tag, x in made.tags if tag == 'meta' and x.get('name') == 'viewport']
  assert viewport == ['width=device-width,initial-scale=1']
  assert '@media (prefers-color-scheme: dark)' in text
  assert not re.search('<th[^>]*></th>', text)
  for tag, attributes in made.tags:
    if tag == 'img':
      assert re.search(r'\w{4}', attributes['alt'])
    if tag == 'video':
      assert 'controls' in attributes and attributes['aria-label'] and attributes['poster']
    if tag == 'svg' or attributes.get('class') == 'bar':
      assert attributes['role'] == 'img' and attributes['aria-label']
    if attributes.get('class') == 'scroll':  # By the keyboard as well.
      assert attributes['tabindex'] == '0' and attributes['aria-label']
    for pixels in re.findall(r'(?:^|[; ])(?:min-)?width: *(\d+)px', attributes.get('style') or ''):
      assert int(pixels) <= 320
  return made


def full_report():
  region = np.zeros((2, 2), bool)
  region[0] = True
  clip = page.ShownClip(FRAMES, 'its <own> clip')
  return report.Report(
    title='A & B',
    notes=['one <i>note</i>'],
    warning='careful',
    figures={'zero_shot.t2v_r1': 27.0, 'rank': 3.0, 'absent_target': 1.0},
    headlines=[
      report.Headline('zero_shot.t2v_r1', 'Found?', 'R@1.', 20, 0.4),
      report.Headline('rank', 'Rank?', 'Median.', percent=False),
      report.Headline('not_measured', 'Never shown', ''),
    ],
    best=[page.Search('a red disc', 1, [clip])],
    worst=[page.Search('"><script>alert(1)</script>', 9, [clip, clip])],
    regions=[
      report.Region(
        FRAMES, region, 'a disc', [('disc', 0.6), ('ring', 0.1)], False, ('disc', 0.5), ('disc',)
      )
    ],
    entities=[('disc', 5), ('ring', 2)],
    comparison=page.Table(['', 'x'], [('R@1', 27.0), ('R@5', None)]),
    details={'More': page.Table(['group', 'x'], [('all', 50.0)])},
    curves={
      'run': [report.Curve('loss', [0, 1, 2], [3, 2, 1.0], 2.5), report.Curve('flat', [0], [1.0])]
    },
    stages=[
      report.Stage('train', 12.0, 'python x.py --a=<b>', False),
      report.Stage('draw', 0.0, '', True),
    ],
    files={'model': 'runs/x'},
  )


def test_page_stands_alone_and_escapes():
  text = report.render(full_report())
  page = readable(text)
  assert 'script' not in [tag for tag, _ in page.tags]
  assert '"><script>alert(1)</script>' in page.text
  for tag, attributes in page.tags:
    assert tag != 'link'
    source = attributes.get('src', attributes.get('href'))
    assert source is None or source.startswith('data:image/png;base64,')
  assert 'http' not in text
  for part in (
    'A & B',
    'careful',
    'its <own> clip',
    'rank 9',
    'Median.',
    'ignored',
    '27.0\N{NO-BREAK SPACE}%',
    'Together 0.2 minutes',
    'disc',
    'runs/x',
  ):
    assert part in page.text
  assert 'Never shown' not in page.text


def test_empty_parts_are_left_out():
  page = Page(report.render(report.Report(title='Nothing')))
  assert 'section' not in [tag for tag, _ in page.tags]


def test_figures_are_written_as_they_are(tmp_path):
  path = report.write(full_report(), tmp_path / 'new')
  assert path.name == 'report.html'
  figures = json.loads((tmp_path / 'new' / 'report.json').read_text())
  assert figures['zero_shot.t2v_r1'] == 27.0
  assert list(figures) == sorted(figures)
  assert 'made' not in figures
  made = {'seed': 3, 'versions': {'jax': '1'}}
  report.write(report.Report('x', figures={'a': 1.0}, made=made), tmp_path)
  assert json.loads((tmp_path / 'report.json').read_text()) == {'made': made, 'a': 1.0}
  with pytest.raises(ValueError, match='not finite'):
    report.write(report.Report('x', figures={'a': float('nan')}), tmp_path)


def test_axes_start_at_zero_and_commands_are_folded():
  text = report.render(full_report())
  loss, flat = re.findall(r'<polyline points="(.*?)"', text)
  # Steps 0, 1, 2 over 40..264; 3, 2, 1 between 0 at 130 and 3 at 8.
  assert loss == '40.0,8.0 152.0,48.7 264.0,89.3'
  assert flat == '40.0,8.0'
  opened = text.index('<details><summary>The commands (1)')
  assert opened < text.index('python x.py') < text.index('</details>', opened)


def test_reads_the_curves_that_training_writes(tmp_path):
  metric_writers = pytest.importorskip('clu.metric_writers')
  for start in (0, 2):  # The second start repeats step 2.
    writer = metric_writers.create_default_writer(tmp_path, asynchronous=False)
    for step in (start, start + 1):
      writer.write_scalars(step, {'train/loss': 10.0 * start + step, 'other': 0.0})
    writer.flush()
    writer.close()
  curves = report.read_curves(tmp_path, ['absent', 'train/loss'], {'train/loss': 0.5})
  assert curves == [report.Curve('train/loss', (0, 1, 2, 3), (0.0, 1.0, 22.0, 23.0), 0.5)]
