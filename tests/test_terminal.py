"""Texts of strangers reach the terminal as text, and never as commands to it.

Names, captions and answers come with data sets, tensors with weights, and
details from servers and decoders.
"""

import pathlib
import re
import subprocess
import sys
import types

import pytest
from absl import logging

from alpro_jax.data import annotations, answers, captions, clips, cut, dataset, entities, verify
from alpro_jax.data.progress import Progress
from alpro_jax.search import indexing, store
from launch import command
from tests import launched, patience
from tests.test_verify import launch_prepare

ROOT = pathlib.Path(__file__).parents[1]
EVIL = 'a\x1b]0;b\x07\x9b2J\r\x7f\u202ec\u2028d'
SHOWN = r'a\x1b]0;b\x07\x9b2J\r\x7f\u202ec\u2028d'
CONTROLS = re.compile('[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]')


def check(text):
  assert SHOWN in text and not CONTROLS.search(text)


def test_printable():
  assert annotations.printable(EVIL) == SHOWN
  assert annotations.printable('one\ntwo\t') == r'one\ntwo\t'
  assert annotations.printable_lines(f'one\n{EVIL}\n') == f'one\n{SHOWN}\n'
  plain = 'ü 日本　語 \xa0 \u200d 👩‍🚒 \\x1b'  # Are nobody's commands.
  assert annotations.printable(plain) == plain


def test_what_is_left_out_of_a_set(capsys):
  rows = clips.Clips()
  rows.skip(EVIL, EVIL, EVIL)
  progress = Progress(2)
  for skipped in (rows.result().skipped[0], annotations.Skipped('x', 'unreadable', EVIL)):
    assert SHOWN in skipped.detail
    progress.add(skipped=skipped)
  check(capsys.readouterr().err)


def test_an_error_of_a_command(capsys):
  for main in (lambda: command.fail(EVIL, 2), lambda: launch_prepare()(['verify', EVIL])):
    try:
      assert main() == 2
    except SystemExit as e:
      assert e.code == 2
    check(capsys.readouterr().err)
  # The others end in the same way, but for those whose data are made up.
  for path in (ROOT / 'launch').glob('*.py'):
    if path.stem in ('ablations', 'demo'):
      continue
    for line in path.read_text().splitlines():
      assert not (
        re.search(r'\{(e|error)[!}]', line) and re.search(r'print\(|sys\.exit\(', line)
      ), f'{path.name}: {line}'


def test_the_log():
  logger = logging.get_absl_logger()
  before = list(logger.filters)
  try:
    command._quiet_logs()
    record = logger.makeRecord('absl', 30, 'x.py', 1, 'one\n%s of %d', (EVIL, 3), None)
    assert all(check(record) for check in logger.filters)
    assert record.getMessage() == f'one\n{SHOWN} of 3'
    odd = logger.makeRecord('absl', 30, 'x.py', 1, '%d', ('x',), None)
    assert all(check(odd) for check in logger.filters)  # Logging says it.
  finally:
    logger.filters[:] = before


def test_a_broken_set(monkeypatch, capsys):
  found = verify.Verified(1, 1, [verify.Problem('train', EVIL, EVIL)])
  monkeypatch.setattr(verify, 'verify', lambda _: found)
  assert launch_prepare()(['verify', 'x']) == 1
  check(capsys.readouterr().out)


def test_a_list_of_answers(monkeypatch, tmp_path, capsys):
  question = annotations.Question('what', EVIL, 'what')
  records = [types.SimpleNamespace(questions=[question])]
  monkeypatch.setattr(
    dataset, 'open_dataset', lambda *_, **__: types.SimpleNamespace(metadata=lambda: records)
  )
  monkeypatch.setattr(answers, 'count_answers', lambda *_: [(EVIL, 1)])
  monkeypatch.setattr(answers, 'write_answers', lambda *_: None)
  launched.run('answers', '--data=x', f'--output={tmp_path / "a.txt"}')
  check(capsys.readouterr().out)


def test_a_list_of_entities(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(captions, 'read_all', lambda *_: [EVIL])
  monkeypatch.setattr(entities, 'count_entities', lambda *_, **__: [(EVIL, 1)])
  monkeypatch.setattr(entities, 'write_entities', lambda *_: None)
  launched.run('entities', '--captions=x', f'--output={tmp_path / "e.txt"}')
  check(capsys.readouterr().out)


def test_a_video_of_an_index():
  file = store.File(EVIL.encode(), 1, 1)
  check(indexing.problem(file, cut.CutVideo((), 'unreadable', EVIL)))


@pytest.mark.parametrize(
  'code',
  [
    'from launch import doctor; doctor.Doctor().good("a", {0!r}); '
    'doctor.Doctor().bad("a", ValueError({0!r}))',
    'from launch import convert; convert._print_list("tensors", [{0!r}])',
  ],
)
def test_other_commands(code):
  done = subprocess.run(
    [sys.executable, '-c', code.format(EVIL)],
    cwd=ROOT,
    check=True,
    capture_output=True,
    timeout=patience.seconds(300),
  )
  check(done.stdout.decode())
