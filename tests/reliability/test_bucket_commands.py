"""Every command with gs:// and s3:// in place of folders, against servers on loopback."""

import json
import pathlib
import subprocess
import sys

import pytest

import alpro_jax
from alpro_jax import buckets, files
from alpro_jax.data import dataset
from tests import launched

pytestmark = pytest.mark.slow

CLIPS = pathlib.Path(alpro_jax.__file__).parent / 'shipped' / 'shapes' / 'clips'
SMALL = (
  '--config.model.video.depth=1',
  '--config.model.text.depth=2',
  '--config.model.text.fusion_layer=1',
  '--config.data.batch_size=8',
  '--config.data.frames=2',
  '--config.train.checkpoint_every_steps=1',
  '--config.optimizer.warmup_steps=1',
)


def run(name, *options):
  """Runs a command; one with --config, whose options are flags, in a process of its own."""
  if not any(str(option).startswith('--config=') for option in options):
    assert launched.run(name, *options) == 0
    return
  command = [sys.executable, launched.ROOT / 'launch' / f'{name}.py', *options]
  ended = subprocess.run(command, capture_output=True, text=True)
  assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize(
  'bucket', ['gs', pytest.param('s3', marks=pytest.mark.reliability)], indirect=True
)
def test_every_command(bucket, tmp_path, capfd):
  clips = sorted(x for x in CLIPS.iterdir() if x.suffix == '.mp4')
  captions, questions = [], []
  for clip, shape in zip(clips, ('disc', 'box', 'disc'), strict=True):
    captions.append({'video': clip.name, 'caption': f'a red {shape} drifts'})
    questions.append({'video': clip.name, 'question': 'What drifts?', 'answer': shape})
  for clip in clips:
    buckets.upload(clip, f'{bucket}/videos/{clip.name}')
  ways = [f'--videos={bucket}/videos']
  for name, rows in {'captions': captions, 'questions': questions}.items():
    ways.append(f'--{name}={bucket}/{name}.jsonl')
    buckets.write(f'{bucket}/{name}.jsonl', '\n'.join(map(json.dumps, rows)).encode())
  for output in (f'{bucket}/sets/clips', tmp_path / 'clips'):
    run('prepare', '--source=folder', *ways, f'--output={output}', '--short_side=64')
  data = f'{bucket}/sets/clips'
  digest = dataset.open_dataset(tmp_path / 'clips').digest
  assert dataset.open_dataset(data, verify=True).digest == digest
  run('prepare', 'verify', data)
  texts = f'--captions={data}'
  run('tokenizer', texts, '--vocab_size=60', f'--output={bucket}/words.model')
  run('entities', texts, '--limit=2', f'--output={bucket}/entities.txt')
  run('answers', f'--data={data}', f'--output={bucket}/answers.txt')
  read = (f'--config.data.tokenizer={bucket}/words.model', f'--config.data.path={data}')
  prompter = (f'--workdir={bucket}/prompter', '--config.train.steps=1')
  run('main', '--config=configs/pretrain_prompter.py:demo', *SMALL, *read, *prompter)
  train = (
    '--config=configs/pretrain.py:demo',
    *SMALL,
    *read,
    f'--config.prompter.checkpoint={bucket}/prompter',
    f'--config.prompter.entities={bucket}/entities.txt',
    '--config.prompter.num_entities=2',
    f'--workdir={bucket}/run',
  )
  run('main', *train, '--config.train.steps=1')
  run('main', *train, '--config.train.steps=2')
  assert json.loads(files.read(f'{bucket}/run/report.json'))['step'] == 2
  run('doctor', *train, '--config.train.steps=3')
  capfd.readouterr()
  run(
    'evaluate',
    f'--checkpoint={bucket}/run',
    f'--data={data}',
    '--split=train',
    f'--output={bucket}/card',
  )
  assert any(name.endswith('.html') for name in files.names(f'{bucket}/card'))
  run('export', f'--checkpoint={bucket}/run', f'--output={bucket}/export', '--platforms=cpu')
  file = f'{bucket}/alpro.safetensors'
  run('convert', f'--checkpoint={bucket}/run', f'--prompter={bucket}/prompter', f'--output={file}')
  run(
    'convert', f'--original={file}', f'--tokenizer={bucket}/words.model', f'--output={bucket}/again'
  )
  for place in ('run', 'export', 'again'):
    features = alpro_jax.load(f'{bucket}/{place}').embed_texts(['a red disc drifts'])
    assert features.feature.shape[0] == 1
