"""A data set of one's own, as docs/research.md adds it."""

import json
import pathlib
import re
import signal

from alpro_jax.data import dataset, sources
from tests import launched, small_videos

PAGE = pathlib.Path(__file__).parents[1] / 'docs/research.md'


def test_the_worked_example_of_a_data_set(tmp_path, monkeypatch, capsys):
  section = PAGE.read_text().split('\n## A data set\n')[1].split('\n## ')[0]
  (code,) = re.findall(r'```python\n(.*?)```', section, re.S)
  monkeypatch.setattr(sources, 'SOURCES', dict(sources.SOURCES))
  monkeypatch.setattr(signal, 'signal', lambda *args: None)
  exec(code, {})
  for name in ('a.mp4', 'b.webm'):
    small_videos.write_video(tmp_path / 'a.mp4').rename(tmp_path / name)
  small_videos.write_video(tmp_path / 'a.mp4')
  path = tmp_path / 'kitchen.csv'
  path.write_text(
    'clip,sentence,language\na,a pot,en\nb,ein Topf,de\nc,eine Pfanne,de\nb,,de\nb,ein\n'
  )
  base = [f'--videos={tmp_path}', f'--captions={path}', f'--output={tmp_path / "set"}']
  assert launched.run('prepare', '--source=folder', *base, '--language=de') == 2
  assert '--source=folder has no --language; it is for kitchen.' in capsys.readouterr().err
  assert launched.run('prepare', '--source=kitchen', *base, '--language=de', '--workers=1') == 0
  assert [
    (record.video, record.captions) for record in dataset.open_dataset(tmp_path / 'set').metadata()
  ] == [('b.mp4', ('ein Topf',))]
  report = json.loads((tmp_path / 'set/report.json').read_text())['splits']['train']
  assert report['counts']['rows_of_other_splits'] == 1
  assert report['skipped_by_reason'] == {'bad row': 1, 'empty caption': 1, 'missing file': 1}
