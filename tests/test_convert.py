"""launch/convert.py as a user runs it, on files of the recorded model."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from alpro_jax import sharding
from alpro_jax.data import tokens
from alpro_jax.evaluation import trained
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.tasks.shared import abstract_params
from alpro_jax.train import checkpoints, identity
from alpro_jax.train.state import TrainState
from alpro_jax.weights import kept, tables, tensor_files
from tests import launched, original_files, patience, small_task

pytestmark = pytest.mark.slow

# Of the recorded model, which its tensors do not tell.
SIZES = '--heads=4', '--fusion_layer=2'


def convert(*options, fails=False):
  """Runs the command; returns what it printed."""
  code, out, errors = launched.said('convert', *options)
  assert code == (2 if fails else 0), out + errors
  return errors if fails else out


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('convert')
  original_files.write_vocabulary(folder)
  return folder


def write(path, state):
  tensor_files.write_tensors(path, state)
  return path


def check_equal(path, expected):
  found = {n: t.array for n, t in tensor_files.open_tensors(path).items()}
  assert list(found) == list(expected)
  for name, array in found.items():
    assert array.dtype == expected[name].dtype, name
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


def stored(workdir):
  """(meta, config of the model, flat parameters) of a checkpoint."""
  model = trained.load(workdir)
  params = flatten_dict(jax.device_get(model.params), sep='/')
  return checkpoints.load_meta(workdir), model, params


def test_a_pretrained_file_there_and_back(folder):
  """Two checkpoints that need no flags, and from them the same file."""
  state = original_files.pretrain()
  source = write(folder / 'pretrain.safetensors', state)
  said = convert(
    f'--original={source}', f'--tokenizer={folder}/vocab.txt', *SIZES, f'--output={folder}/alpro'
  )
  assert 'visual_encoder.model.head.weight: classes of Kinetics' in said
  meta, model, params = stored(folder / 'alpro')
  assert meta['task'] == 'pretrain' and meta['step'] == 0
  assert model.config.prompter.checkpoint == f'{folder}/alpro_prompter'
  assert model.config.data.frames == model.model.config.video.frames == 4
  assert model.config.data.image_size == 64
  assert model.model.config.entities == original_files.ENTITIES
  assert meta['tokenizer']['digest'] == tokens.load_tokenizer(folder / 'vocab.txt').digest
  # What tests/test_parity.py computes with.
  expected = original_files.read(original_files.student(), model.model.config)
  assert set(params) == set(expected)
  for path, array in params.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)

  meta, prompter, params = stored(folder / 'alpro_prompter')
  assert meta['task'] == 'prompter' and prompter.model.config.entities == 0
  np.testing.assert_array_equal(params['temperature'], state['prompter.temp'])

  convert(
    f'--checkpoint={folder}/alpro',
    f'--prompter={folder}/alpro_prompter',
    f'--output={folder}/back.safetensors',
  )
  check_equal(folder / 'back.safetensors', state)
  said = convert(f'--checkpoint={folder}/alpro', f'--output={folder}/student.safetensors')
  assert 'pass --prompter' in said
  check_equal(
    folder / 'student.safetensors',
    {n: a for n, a in state.items() if not n.startswith('prompter.')},
  )
  error = convert(
    f'--original={source}',
    f'--tokenizer={folder}/vocab.txt',
    *SIZES,
    f'--output={folder}/alpro',
    fails=True,
  )
  assert 'exists already; choose another' in error


def test_question_answering_there_and_back(folder):
  """With fewer answers than labels, names of LAVIS and half precision."""
  state = {
    name: array.astype(np.float16) if array.dtype == np.float32 else array
    for name, array in original_files.lavis(original_files.question_answering()).items()
  }
  source = write(folder / 'qa.safetensors', state)
  (folder / 'ans2label.json').write_text(json.dumps({f'answer {i}': i for i in range(12)}))
  said = convert(
    f'--original={source}',
    f'--tokenizer={folder}/vocab.txt',
    *SIZES,
    f'--answers={folder}/ans2label.json',
    f'--output={folder}/qa',
  )
  assert 'the last 3 of 15 labels' in said
  meta, model, params = stored(folder / 'qa')
  assert model.answers_questions and len(model.answers) == 12
  assert params['answer_head/out/kernel'].shape[1] == 12
  assert meta['config']['data']['text'] == 'questions'
  convert(f'--checkpoint={folder}/qa', f'--output={folder}/qa2.safetensors')
  check_equal(folder / 'qa2.safetensors', state)


def test_backbones_make_a_start(folder):
  vit = folder / 'vit.npz'
  np.savez(vit, **original_files.vit_npz())
  bert = folder / 'bert'
  bert.mkdir()
  write(bert / 'model.safetensors', original_files.bert())
  (bert / 'vocab.txt').write_text((folder / 'vocab.txt').read_text())
  sizes = {'hidden_size': 64, 'num_hidden_layers': 4, 'num_attention_heads': 4}
  (bert / 'config.json').write_text(json.dumps(sizes))
  said = convert(
    f'--vit={vit}', f'--bert={bert}', '--frames=2', '--image_size=96', f'--output={folder}/start'
  )
  assert 'video_projection: all 2' in said
  assert 'config.json beside --bert: 4 heads of attention' in said
  assert 'positions: 16 to 36 rows' in said
  meta, model, params = stored(folder / 'start')
  assert model.model.config.video.heads == model.model.config.text.heads == 4
  assert model.config.data.image_size == 96 and model.config.data.frames == 2
  assert params['video_encoder/positions'].shape == (36, 64)
  assert not params['video_encoder/block0/temporal_fc/kernel'].any()
  for part in ('query/kernel', 'out/bias'):
    np.testing.assert_array_equal(
      params[f'video_encoder/block1/temporal_attention/{part}'],
      params[f'video_encoder/block1/attention/{part}'],
    )
  student = original_files.student()
  np.testing.assert_array_equal(
    params['fusion_encoder/layer3/mlp/fc2/bias'],
    student['text_encoder.bert.encoder.layer.3.output.dense.bias'],
  )
  listed = meta['converted']['from the seed']
  assert 'match_head: all 2' in listed and 'temperature ()' in listed


# Many commands in one process, each with its own flags.
_SESSION = """
import contextlib
import io
import json
import os
import sys
from absl import flags
from absl.testing import flagsaver
from launch import command, convert

flags.FLAGS(['convert'])
done = []
for options in json.loads(sys.argv[1]):
  out, code = io.StringIO(), 0
  with flagsaver.flagsaver(), contextlib.redirect_stdout(
      out), contextlib.redirect_stderr(out):
    try:
      flags.FLAGS(['convert', *options])
      with command.mistakes_in_one_line():
        convert.main()
    except SystemExit as error:
      code = error.code
  done.append((code, out.getvalue()))
json.dump(done, sys.stdout)
"""


def session(*commands, before='', killed=False):
  """Runs commands; returns [(exit code, what it said)]."""
  code = _SESSION.replace('flags.FLAGS', f'{before}\nflags.FLAGS', 1)
  done = subprocess.run(
    [sys.executable, '-c', code, json.dumps(commands)],
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
  )
  if killed:
    assert done.returncode == -signal.SIGKILL, done.stderr
    return None
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def make_ours(folder):
  """Three runs of this project: a prompter, a pre-training with it, answers.

  Numbers are random; two heads of attention, which is no published model's.
  """
  (folder / 'vocab.txt').write_text(
    '\n'.join([*tokens.PIECES, *(f'w{i}' for i in range(35))]) + '\n'
  )
  (folder / 'answers.txt').write_text('disc\nring\ncross\n')
  tokenizer = tokens.load_tokenizer(folder / 'vocab.txt')
  for task in ('prompter', 'pretrain', 'question_answering'):
    config = small_task.small_config(folder, task)
    for part in ('video', 'text'):
      config.model[part].heads = 2
    config.data.tokenizer = str(folder / 'vocab.txt')
    config.data.answers = str(folder / 'answers.txt')
    config.data.text = 'questions' if task == 'question_answering' else 'captions'
    config.prompter.checkpoint = str(folder / 'prompter') if task == 'pretrain' else ''
    own = get_task(config, TextInfo(tokenizer.special, 40), sharding.make_mesh())
    rng = np.random.default_rng(len(task))
    params = jax.tree.map(
      lambda leaf, rng=rng: rng.normal(size=leaf.shape).astype(leaf.dtype),
      abstract_params(own.model, sharding.make_mesh()),
    )
    store = checkpoints.Checkpoints(folder / task)
    store.save(TrainState(np.int32(7), params, ()), identity.describe(config, own, tokenizer))
    store.close()


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
  """What came of a day's work with them; see the tests below."""
  folder = tmp_path_factory.mktemp('ours')
  make_ours(folder)
  out = folder / 'out'
  told = [
    (f'--checkpoint={folder}/prompter', f'--output={out}/p.safetensors'),
    (
      f'--checkpoint={folder}/pretrain',
      f'--prompter={folder}/prompter',
      f'--output={out}/both.safetensors',
    ),
    (f'--checkpoint={folder}/question_answering', f'--output={out}/qa.safetensors'),
  ]
  assert [code for code, _ in session(*told)] == [0, 0, 0]
  # What another program leaves of a file: its tensors.
  plain = {n: t.array for n, t in tensor_files.open_tensors(out / 'p.safetensors').items()}
  tensor_files.write_tensors(out / 'plain.safetensors', plain)
  return folder


def back(folder, name, *options, output):
  return (
    f'--original={folder}/out/{name}.safetensors',
    f'--output={output}',
    f'--tokenizer={folder}/vocab.txt',
    *options,
  )


def check_same_model(first, second):
  """Parameters, sizes, tokenizer and labels, by content."""
  (one, other) = map(identity.of_checkpoint, (first, second))
  assert one['digest'] == other['digest'] and one['task'] == other['task']


def test_what_went_out_comes_back_as_it_was(ours, tmp_path):
  """Elsewhere, and after the runs that it came from are gone."""
  done = session(
    back(ours, 'p', output=tmp_path / 'p'),
    back(ours, 'p', '--heads=2', '--fusion_layer=1', output=tmp_path / 'p2'),
    back(ours, 'both', output=tmp_path / 'both'),
    back(ours, 'qa', output=tmp_path / 'qa'),
  )
  assert [code for code, _ in done] == [0, 0, 0, 0], done
  for name in ('p', 'p2', 'both_prompter'):
    check_same_model(tmp_path / name, ours / 'prompter')
  check_same_model(tmp_path / 'both', ours / 'pretrain')
  check_same_model(tmp_path / 'qa', ours / 'question_answering')

  prompter = trained.load(tmp_path / 'p')
  assert prompter.model.config.video.heads == 2
  assert prompter.config.task == 'prompter' and not prompter.knows_matching
  assert trained.load(tmp_path / 'qa').answers == ('disc', 'ring', 'cross')
  old, new = (checkpoints.load_meta(path) for path in (ours / 'pretrain', tmp_path / 'both'))
  for name in ('entities', 'templates', 'prompter', 'data', 'start'):
    assert new[name] == old[name], name
  assert old['entities'] == ['disc', 'ring', 'cross']
  for options in (old['config'], new['config']):
    options['train'].update(init_from='', steps=0)
    options['prompter'].update(entities='', num_entities=0, checkpoint='')
    options['data'].update(answers='', tokenizer='')
  assert new['config'] == old['config']
  away = ours.rename(ours.with_name('away'))
  try:
    model = trained.load(tmp_path / 'both', tokenizer=away / 'vocab.txt')
    _, entities = trained.load_teacher(model)
  finally:
    away.rename(ours)
  assert entities == ('disc', 'ring', 'cross')


def test_what_a_file_does_not_say_is_asked_for(ours, tmp_path):
  """Or contradicts what it does say: a guess would be another model."""
  (tmp_path / 'other.txt').write_text(
    '\n'.join([*tokens.PIECES, *(f'w{i}' for i in reversed(range(35)))]) + '\n'
  )
  (tmp_path / 'answers.txt').write_text('ring\ndisc\ncross\n')
  sizes = ('--heads=2', '--fusion_layer=1')
  wrong = {
    ('plain', *sizes): "'prompter' or 'pretrain' or 'retrieval'.*Pass --task",
    ('plain', '--task=prompter', '--fusion_layer=1'): '32 channels.*--heads',
    ('plain', '--task=prompter', '--heads=2'): 'of the 2 layers.*pass --fusion_layer',
    ('p', '--heads=4'): '--heads is 4, but .*says 2; pass that of the run',
    ('p', '--fusion_layer=2'): '--fusion_layer is 2, but .*says 1',
    ('p', '--task=retrieval'): "its task is 'prompter'; leave --task out",
    (
      'p',
      f'--tokenizer={tmp_path}/other.txt',
    ): '--tokenizer is .*, but .* says .*; pass that of the run',
    ('p', f'--tokenizer={tmp_path}/none.txt'): '--tokenizer=.* is not there',
    (
      'qa',
      f'--answers={tmp_path}/answers.txt',
    ): "--answers is .'ring', 'disc'.*says .'disc', 'ring'",
    ('p', f'--answers={tmp_path}/answers.txt'): "is of 'prompter'; leave",
  }
  done = session(*(back(ours, *options, output=tmp_path / 'out') for options in wrong))
  for (options, message), (code, said) in zip(wrong.items(), done, strict=True):
    assert code == 2, (options, said)
    assert re.search(message, said), (options, said)
  assert not (tmp_path / 'out').exists()


def test_what_is_guessed_is_said(ours, tmp_path):
  """Or given: a file of another program's, and one of a published width."""
  values = checkpoints.load_meta(ours / 'prompter')['model']
  for part in ('video', 'text'):
    values[part] |= {'width': 768, 'mlp_size': 8}
  config = AlproConfig.from_dict(values)
  shapes = abstract_params(Alpro(config), sharding.make_mesh())
  tensor_files.write_tensors(
    ours / 'out' / 'wide.safetensors',
    tables.to_original(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes), config),
  )
  options = '--task=prompter', '--fusion_layer=1'
  (code, said), (wide, guessed) = session(
    back(ours, 'plain', '--heads=2', *options, output=tmp_path / 'out'),
    back(ours, 'wide', *options, output=tmp_path / 'wide'),
  )
  assert code == 0, said
  assert 'not said by the file' not in said
  meta, right = (checkpoints.load_meta(path) for path in (tmp_path / 'out', ours / 'prompter'))
  for name, digest in right['arrays'].items():
    assert meta['arrays'][name] == digest or name == 'train/step'
  assert meta['task'] == 'prompter'
  identity.check_sizes('', meta['model'], right['model'])
  assert wide == 0, guessed
  assert 'not said by the file: 1' in guessed
  assert '12 heads of attention, as all published models of 768 ch' in guessed
  meta = checkpoints.load_meta(tmp_path / 'wide')
  assert [meta['model'][x]['heads'] for x in ('video', 'text')] == [12, 12]


def test_what_is_no_prompter_does_not_go_out(ours, tmp_path):
  """Another model, another prompter, numbers that are none."""
  other, broken = tmp_path / 'other', tmp_path / 'broken'
  meta = checkpoints.load_meta(ours / 'prompter')
  model = trained.load(ours / 'prompter')
  params = flatten_dict(jax.device_get(model.params), sep='/')
  for where, value in ((other, 1.5), (broken, np.nan)):
    changed = params | {'temperature': np.full_like(params['temperature'], value)}
    store = checkpoints.Checkpoints(where)
    store.save(TrainState(np.int32(7), unflatten_dict(changed, sep='/'), ()), meta)
    store.close()
  end = f'--output={tmp_path}/a.safetensors'
  wrong = {
    (
      f'--checkpoint={ours}/pretrain',
      f'--prompter={ours}/question_answering',
    ): "--prompter=.*is of task 'question_answering'.*/prompter'",
    (f'--checkpoint={ours}/prompter', f'--prompter={ours}/prompter'): 'leave --prompter out',
    (f'--checkpoint={ours}/pretrain', f'--prompter={other}'): 'was pre-trained with others',
    (f'--checkpoint={broken}',): '1 tensors hold NaN or infinity: temp',
  }
  done = session(*((*options, end) for options in wrong))
  for (options, message), (code, said) in zip(wrong.items(), done, strict=True):
    assert code == 2 and re.search(message, said), (options, said)
  assert not (tmp_path / 'a.safetensors').exists()


_KILL = """
import signal
rename, renamed = os.rename, []

def killed(*names):
  if not str(names[1]).startswith(sys.argv[2]):
    return rename(*names)
  renamed.append(names)
  if len(renamed) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  rename(*names)

os.rename = killed
"""


def test_what_was_killed_can_be_repeated(ours, tmp_path):
  """At the worst moment, when one of two workdirs has its name."""
  command = back(ours, 'both', output=tmp_path / 'both')
  (tmp_path / 'both.partial').mkdir()
  (tmp_path / 'both.partial' / 'precious').write_text('mine')
  session(command, killed=True, before=_KILL.replace('sys.argv[2]', repr(f'{tmp_path}/both')))
  assert sorted(os.listdir(tmp_path)) == ['.both.unfinished-1', 'both.partial', 'both_prompter']
  (code, said), (again, refused) = session(command, command)
  assert code == 0, said
  assert again == 2 and 'exists already; choose another' in refused
  for name, right in (('both', 'pretrain'), ('both_prompter', 'prompter')):
    check_same_model(tmp_path / name, ours / right)
    assert (tmp_path / name / kept.FILE).is_file()
  assert (tmp_path / 'both.partial' / 'precious').read_text() == 'mine'


def test_mistakes_are_one_line(folder):
  state = original_files.retrieval()
  name = 'text_encoder.bert.encoder.layer.2.output.dense.bias'
  state['surprise'] = state.pop(name)
  source = write(folder / 'wrong.safetensors', state)
  (folder / 'vit').mkdir()
  vit = write(folder / 'vit' / 'timm.safetensors', original_files.vit())
  (folder / 'vit' / 'config.json').write_text('{"hidden_size": 768, "num_attention_heads": 12}')
  for options, message in (
    (
      (f'--original={source}', f'--tokenizer={folder}/vocab.txt', *SIZES),
      f'1 missing: {name}. 1 not known: surprise',
    ),
    ((f'--original={source}',), '--tokenizer is needed'),
    (
      (f'--vit={vit}', f'--tokenizer={folder}/vocab.txt'),
      'pass --heads. (config.json beside --vit: of another model and not used, its hidden_size is '
      '768, that of these weights 64.)',
    ),
    ((), 'exactly one of --released, --original'),
  ):
    error = convert(*options, f'--output={folder}/wrong', fails=True)
    assert message in error and error.count('\n') == 1, error
  assert not (folder / 'wrong').exists()
