"""Published weights: the table, the command against a server on loopback, what it refuses."""

import collections
import hashlib
import json
import math
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import alpro_jax
from alpro_jax import sharding
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.shared import abstract_params
from alpro_jax.weights import released, sizes, sources, tables, tensor_files
from configs import models
from tests import original_files, ranged_server
from tests.test_convert import SIZES, session

ROOT = pathlib.Path(__file__).parents[1]
# Files that need no torch to be read, and a vocabulary of the recorded model's size.
_PLAIN = """
from alpro_jax.weights import released
for name, release in released.RELEASES.items():
  weights, *rest = release.files
  weights = weights._replace(name=weights.name.partition('.')[0] + '.safetensors')
  rest = [file._replace(sha256='') for file in rest]
  released.RELEASES[name] = release._replace(files=(weights, *rest))
"""


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """{name: bytes} of small files under the published names."""
  folder = tmp_path_factory.mktemp('published')
  original_files.write_vocabulary(folder)
  for data in ('msrvtt', 'msvd'):
    labels = {f'{data} {i}': i for i in range(12)}
    (folder / f'{data}_ans2label.json').write_text(json.dumps(labels))
  for name, state in {
    'alpro_pretrain': original_files.pretrain(),
    'alpro_msrvtt_retrieval': original_files.retrieval(),
    'alpro_didemo_retrieval': original_files.lavis(original_files.retrieval()),
    'alpro_msrvtt_qa': original_files.question_answering(),
    'alpro_msvd_qa': original_files.lavis(original_files.question_answering()),
  }.items():
    tensor_files.write_tensors(folder / f'{name}.safetensors', state)
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(published, monkeypatch):
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  with ranged_server.serve(published) as server:
    yield server


def flags(server, tmp_path, name, *more):
  return (
    f'--released={name}',
    f'--mirror={server.address}',
    f'--downloads={tmp_path}/kept',
    f'--output={tmp_path}/{name}',
    *SIZES,
    *more,
  )


@pytest.mark.slow
def test_a_release_becomes_a_model_that_is_asked(server, tmp_path):
  """In one command each; files that two of them need come once."""
  names = 'pretrain', 'didemo_retrieval', 'msvd_qa'
  done = session(*(flags(server, tmp_path, name) for name in names), before=_PLAIN)
  for (code, said), name in zip(done, names, strict=True):
    assert code == 0, said
    release = released.RELEASES[name]
    assert re.search(r'to download: alpro_\w+.safetensors, \d\.\d MB, from', said), said
    assert said.index('to download') < said.index('MB of alpro') < said.index('Written'), said
    card = (tmp_path / name / 'README.md').read_text()
    assert all(text in card for figure in release.figures for text in figure)
    file = release.files[0].name.partition('.')[0] + '.safetensors'
    assert hashlib.sha256(server.files[file]).hexdigest() in card
    assert f"alpro_jax.load('{tmp_path}/{name}')" in card
    assert card.startswith('---\nlibrary_name: alpro_jax\nlicense: bsd-3-clause\n')
  assert not (tmp_path / 'pretrain_prompter' / 'README.md').exists()
  assert [name for name, _ in server.asked].count('vocab.txt') == 2  # Its size, and it.

  clips = np.zeros((2, 4, 64, 64, 3), np.uint8)
  found = alpro_jax.load(tmp_path / 'didemo_retrieval')
  assert found.trained.config.data.max_text_tokens == 50
  assert found.similarity(['w1 w2'], clips).shape == (1, 2)
  found.save_pretrained(tmp_path / 'hub')
  card = (tmp_path / 'hub' / 'README.md').read_text()
  assert 'license: bsd-3-clause' in card and '35.9 / 67.5 / 78.8' in card
  assert 'of weights that others trained for the task `retrieval` (ALPRO, fine-tuned' in card
  assert str(tmp_path) not in card + (tmp_path / 'hub' / 'config.json').read_text()
  (best,) = alpro_jax.load(tmp_path / 'msvd_qa').answer('w3', clips[:1], top=1)
  assert best[0].name.startswith('msvd ')


def test_what_broke_off_goes_on_with_the_same_command(server, tmp_path):
  command = flags(server, tmp_path, 'msrvtt_retrieval')
  weights = 'alpro_msrvtt_retrieval.safetensors'
  # The sizes of both files, all of vocab.txt, and a beginning.
  server.breaks_after = [10**9] * 3 + [2_000_000]
  (broken, said), (code, again), (refused, exists) = session(
    command,
    command,
    command,
    before=_PLAIN + '\nfrom alpro_jax.data import web\nweb.LONGEST_WAIT = 0',
  )
  assert broken == 2 and '2,000,000 bytes are kept, and the same command goes on' in said
  assert code == 0 and 'of which 2.0 MB are here' in again, again
  assert (weights, 'bytes=2000000-') in server.asked
  assert (tmp_path / 'kept' / weights).read_bytes() == server.files[weights]
  assert refused == 2 and 'exists already; choose another --output' in exists


def test_what_is_refused_before_a_byte_comes(server, tmp_path):
  """No torch for a file of PyTorch's, a damaged vocabulary, flags that contradict."""
  (code, said), (_, other), (_, alone) = session(
    flags(server, tmp_path, 'pretrain'),
    flags(server, tmp_path, 'pretrain', '--original=a.pt'),
    (f'--mirror={server.address}', '--original=a.pt', f'--output={tmp_path}/a'),
    before='sys.modules["torch"] = None',
  )
  assert code == 2 and 'alpro_pretrain.pt is a PyTorch file, which needs torch: `pip' in said
  assert 'exactly one of --released, --original' in other
  assert '--mirror goes with --released alone' in alone
  assert server.asked == []
  wanted = released.RELEASES['pretrain'].files[1:]
  with pytest.raises(ValueError, match='vocab.txt is not the file that is expected: its sha256'):
    released.fetch(wanted, tmp_path / 'kept', tmp_path / 'out', mirror=server.address, log=str)


def test_a_disk_that_is_too_small_is_said_before(server, tmp_path, monkeypatch):
  """What is downloaded and what is converted lie on one disk, or on two."""
  usage = collections.namedtuple('usage', 'total used free')
  file = released.File('original', 'alpro_msvd_qa.safetensors', '')
  size, said = len(server.files[file.name]), []

  def fetch(free):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(0, 0, free))
    folder = tmp_path / 'kept'
    return released.fetch(
      [file], folder, tmp_path / 'runs' / 'out', mirror=server.address, log=said.append
    )

  with pytest.raises(ValueError, match='the disk is too small: .* in .*kept and .* in .*out are n'):
    fetch(2 * size - 1)
  assert 'to download: alpro_msvd_qa.safetensors' in said[0]
  assert len(server.asked) == 1 and not list((tmp_path / 'kept').glob('*.safetensors'))
  assert fetch(2 * size)['original'].stat().st_size == size
  with pytest.raises(ValueError, match='the disk is too small'):  # Of the conversion alone.
    fetch(size - 1)
  said.clear()
  fetch(size)
  assert said == [f'nothing to download, all of it is in {tmp_path}/kept']


def test_the_table():
  """Addresses over https, names that do not meet, the figures of the specification."""
  urls = {}
  for release in released.RELEASES.values():
    assert release.files[0].flag == 'original'
    assert (release.task == 'question_answering') == ('answers' in {x.flag for x in release.files})
    for file in release.files:
      assert file.url.startswith('https://') and urls.setdefault(file.name, file.url) == file.url
  assert len(set(urls.values())) == len(urls) == 8

  specification = (ROOT / 'docs' / 'specification.md').read_text()
  known = specification.partition('## Published results')[2].partition('\n## ')[0]
  known = set(map(float, re.findall(r'\d+\.?\d*', known)))
  for name, release in released.RELEASES.items():
    for figure, value in release.figures:
      numbers = {float(x) for x in re.findall(r'\d+\.\d+', value)}
      assert numbers <= known or name == 'pretrain', (name, figure)


@pytest.mark.parametrize(
  'task, count, parameters',
  [
    ('pretrain', 928, 465_663_874),
    ('retrieval', 461, 231_472_845),
    ('question_answering', 458, 234_336_879),
  ],
)
def test_names_and_shapes_in_full_size(task, count, parameters):
  """The tensors of the published sizes are sorted, found complete, and none is left over."""
  heads = {
    'pretrain': {'embed_size': 256, 'entities': 1000, 'answers': 0, 'match': True, 'mlm': True},
    'retrieval': {'embed_size': 256, 'entities': 0, 'answers': 0, 'match': True, 'mlm': True},
    # Questions need neither projections nor a head for matches, but the original has them.
    'question_answering': {
      'embed_size': 256,
      'entities': 0,
      'answers': 1500,
      'match': True,
      'mlm': False,
    },
  }
  values = models.base().to_dict()
  values['text']['vocab_size'] = 30_522

  def state(config):
    shapes = abstract_params(Alpro(config), sharding.make_mesh())
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), shapes)
    return original_files.whole(tables.to_original(params, config))

  tensors = state(AlproConfig.from_dict(values | heads[task]))
  if task == 'pretrain':
    teacher = state(AlproConfig.from_dict(values | heads['retrieval']))
    bank = {f'{kind}_prompt_feat': np.zeros((1000, 256), np.int8) for kind in ('video', 'image')}
    tensors |= {f'prompter.{name}': array for name, array in (teacher | bank).items()}
  assert len(tensors) == count
  beside = ('position_ids', 'prompt_feat', 'decoder.weight', 'decoder.bias')
  learned = [array for name, array in tensors.items() if not name.endswith(beside)]
  assert sum(math.prod(array.shape) for array in learned) == parameters
  found, own, prompter = sources.alpro(tensor_files.named(tensors))
  assert found == task and bool(prompter) == (task == 'pretrain')
  assert sizes.head_sizes(own) == {
    name: heads[task][name] for name in ('embed_size', 'entities', 'answers')
  }
  for part in filter(None, (own, prompter)):
    video, text = sizes.video_sizes(part), sizes.text_sizes(part)
    assert (video['width'], video['heads'], text['depth'], text['fusion_layer']) == (768, 12, 12, 6)
