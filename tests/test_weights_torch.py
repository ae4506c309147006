"""Models of the transformers package and their twins here, and PyTorch tensor_files.

Skipped where torch or transformers is not installed.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from alpro_jax.data import tokens
from alpro_jax.evaluation import trained
from alpro_jax.models import bert, timesformer
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.models.layers import ComputeOptions
from alpro_jax.weights import sizes, sources, tables, tensor_files
from configs import models
from tests import original_files, ranged_server, test_convert

torch = pytest.importorskip('torch')
TOLERANCE = 1e-5


def randomize(module, seed):
  """Every parameter, those that start at 0 or 1 too."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in module.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.copy_(0.15 * noise + (parameter if parameter.ndim == 1 else 0))
  return module.eval()


def twin(source, part):
  """Our config and parameters of one encoder, from a source of weights."""
  values = models.base().to_dict()
  find = sizes.video_sizes if part == 'video' else sizes.text_sizes
  values[part].update(find(source.tensors, source.heads))
  other = 'text' if part == 'video' else 'video'
  values[other].update(width=values[part]['width'], heads=source.heads)
  config = AlproConfig.from_dict(values)
  rows = [row for row in tables.rename_table(config) if row.original in source.tensors]
  params = tables.read_params(source.tensors, rows)
  return config, unflatten_dict(params, sep='/')


def agree(ours, theirs):
  theirs = theirs.detach().numpy()
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def test_a_bert_of_transformers_agrees(tmp_path):
  """All layers, through the cut between text and fusion, with padding."""
  transformers = pytest.importorskip('transformers')
  settings = transformers.BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
  )
  theirs = randomize(transformers.BertModel(settings), 0)
  theirs.save_pretrained(tmp_path)
  source = sources.bert(tensor_files.open_tensors(tmp_path), settings.to_dict())
  assert source.heads == 2
  config, params = twin(source, 'text')
  assert dataclasses.asdict(config.text)['fusion_layer'] == 1
  rng = np.random.default_rng(0)
  ids = rng.integers(1, 50, (3, 10)).astype(np.int32)
  mask = np.arange(10) < np.array([[10], [4], [7]])
  expected = theirs(
    torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long()
  ).last_hidden_state

  @jax.jit
  def run(params):
    x = bert.Embedding(config.text, ComputeOptions(jnp.float32)).apply(
      {'params': params['text_embedding']}, ids, train=False
    )
    for name, start, stop in (('text_encoder', 0, 1), ('fusion_encoder', 1, 2)):
      layers = bert.Layers(config.text, ComputeOptions(jnp.float32), start, stop)
      x = layers.apply({'params': params[name]}, x, mask, train=False)
    return x

  agree(np.asarray(run(params)), expected)


def test_a_head_for_words_of_transformers_agrees(tmp_path):
  transformers = pytest.importorskip('transformers')
  settings = transformers.BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
  )
  theirs = randomize(transformers.BertForPreTraining(settings), 1)
  torch.save(theirs.state_dict(), tmp_path / 'pytorch_model.bin')
  source = sources.bert(tensor_files.open_tensors(tmp_path), settings.to_dict())
  config, params = twin(source, 'text')
  hidden = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
  model = Alpro(dataclasses.replace(config, embed_size=0, match=False))
  logits = jax.jit(lambda params: model.apply({'params': params}, hidden, method='mlm_logits'))(
    params
  )
  agree(np.asarray(logits), theirs.cls.predictions(torch.from_numpy(hidden)))


@pytest.mark.parametrize('naming', ['transformers', 'authors'])
def test_a_timesformer_agrees(tmp_path, naming):
  """Divided attention; tokens of frames averaged over time, as ALPRO does."""
  transformers = pytest.importorskip('transformers')
  settings = transformers.TimesformerConfig(
    image_size=32,
    patch_size=16,
    num_frames=3,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
  )
  theirs = randomize(transformers.TimesformerForVideoClassification(settings), 2)
  if naming == 'transformers':
    theirs.save_pretrained(tmp_path)
    source = sources.vit(tensor_files.open_tensors(tmp_path), settings.to_dict())
  else:
    state = sources.vit(
      tensor_files.named({n: t.numpy() for n, t in theirs.state_dict().items()})
    ).tensors
    state = {
      name.removeprefix('visual_encoder.'): torch.from_numpy(t.array.copy())
      for name, t in state.items()
    }
    torch.save({'epoch': 7, 'model_state': state}, tmp_path / 'ts.pyth')
    source = sources.vit(tensor_files.open_tensors(tmp_path / 'ts.pyth'))._replace(heads=2)
  assert not source.copied
  config, params = twin(source, 'video')
  assert config.video.frames == 3 and config.video.image_size == 32
  video = np.random.default_rng(0).normal(size=(2, 3, 32, 32, 3)).astype(np.float32)
  pixels = einops.rearrange(video, 'b t h w c -> b t c h w')
  hidden = theirs.timesformer(torch.from_numpy(pixels.copy())).last_hidden_state
  # Theirs: class token, then place by place.
  patches = einops.reduce(hidden[:, 1:], 'b (n t) d -> b n d', 'mean', t=3)
  expected = torch.cat([hidden[:, :1], patches], dim=1)
  encoder = timesformer.Encoder(config.video, ComputeOptions(jnp.float32))
  ours = jax.jit(lambda params: encoder.apply({'params': params}, video, train=False))(
    params['video_encoder']
  )
  agree(np.asarray(ours), expected)


# Files.


@pytest.mark.parametrize('new', [True, False], ids=['zip', 'before 1.6'])
@pytest.mark.parametrize('wrapper', ['', 'model', 'model_state_dict'])
def test_pytorch_files_are_read(tmp_path, new, wrapper):
  state = {
    'w': torch.arange(6.0).reshape(2, 3).T,
    'n': torch.tensor(3),
    'h': torch.arange(3).half(),
    'b': torch.arange(3).bfloat16(),
  }
  saved = {wrapper: state, 'epoch': 3} if wrapper else state
  torch.save(saved, tmp_path / 'a.pt', _use_new_zipfile_serialization=new)
  found = tensor_files.open_tensors(tmp_path / 'a.pt')
  assert list(found) == list(state)
  for name, tensor in state.items():
    array = found[name].array
    assert array.shape == tuple(tensor.shape)
    np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy())
  assert found['b'].array.dtype == jnp.bfloat16 and found['n'].array.dtype == np.int64


def test_what_would_run_code_is_refused(tmp_path):
  class Surprise:
    def __reduce__(self):
      return (pytest.fail, ('code of the file was run',))

  torch.save({'model': {'w': torch.zeros(1)}, 'x': Surprise()}, tmp_path / 'a.pt')
  with pytest.raises(ValueError, match='could run code; it was not read'):
    tensor_files.open_tensors(tmp_path / 'a.pt')


@pytest.mark.parametrize(
  'saved, message', [([1, 2], 'holds a list'), ({'w': 3}, 'w is a int, expected a tensor')]
)
def test_what_is_no_state_dict_is_refused(tmp_path, saved, message):
  torch.save(saved, tmp_path / 'a.pt')
  with pytest.raises(ValueError, match=message):
    tensor_files.open_tensors(tmp_path / 'a.pt')


def test_one_of_several_state_dicts_is_not_guessed(tmp_path):
  state = {'w': torch.zeros(1)}
  torch.save({'model': state, 'state_dict': state}, tmp_path / 'a.pt')
  with pytest.raises(ValueError, match='several.*model and state_dict'):
    tensor_files.open_tensors(tmp_path / 'a.pt')


def test_a_broken_file_is_refused(tmp_path):
  (tmp_path / 'a.pt').write_bytes(b'')
  with pytest.raises(ValueError, match='cannot be read|could run code'):
    tensor_files.open_tensors(tmp_path / 'a.pt')


def test_pytorch_files_are_written(tmp_path):
  state = original_files.retrieval()
  state['brain'] = np.arange(3).astype(jnp.bfloat16)
  tensor_files.write_tensors(tmp_path / 'a.pt', state)
  loaded = torch.load(tmp_path / 'a.pt', weights_only=True)
  assert list(loaded) == list(state)
  found = tensor_files.open_tensors(tmp_path / 'a.pt')
  for name, array in state.items():
    assert found[name].array.dtype == array.dtype
    np.testing.assert_array_equal(found[name].array, array, err_msg=name)


@pytest.mark.parametrize('wrapped', [False, True])
def test_pytorch_files_carry_metadata(tmp_path, wrapped):
  """Beside the tensors, so that whoever reads those finds nothing else."""
  state = {'weight': np.ones((2, 3), np.float32), 'bias': np.zeros(2)}
  path = tmp_path / 'a.pt'
  tensor_files.write_tensors(path, state, {'who': 'me'})
  assert tensor_files.read_metadata(path) == {'who': 'me'}
  loaded = torch.load(path, weights_only=True)
  assert all(isinstance(value, torch.Tensor) for value in loaded.values())
  module = torch.nn.Linear(3, 2)
  assert str(module.load_state_dict(loaded, strict=True)) == ('<All keys matched successfully>')
  # Another program that keeps the dict keeps them, one that copies it not.
  torch.save({'model': loaded} if wrapped else dict(loaded), path)
  assert tensor_files.read_metadata(path) == ({'who': 'me'} if wrapped else {})
  assert list(tensor_files.open_tensors(path)) == list(state)


def test_a_published_file_under_its_own_name(tmp_path, monkeypatch):
  """launch/convert.py --released as it is, but for where the files come from."""
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  state = {name: np.asarray(array) for name, array in original_files.retrieval().items()}
  tensor_files.write_tensors(tmp_path / 'weights.pt', state)
  words = len(state['text_encoder.bert.embeddings.word_embeddings.weight'])
  pieces = [*tokens.PIECES, *(f'w{i}' for i in range(words - len(tokens.PIECES)))]
  (tmp_path / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  weights = (tmp_path / 'weights.pt').read_bytes()
  with ranged_server.serve({'alpro_msrvtt_retrieval.pt': weights}) as server:
    test_convert.convert(
      '--released=msrvtt_retrieval',
      f'--mirror={server.address}',
      f'--downloads={tmp_path}/kept',
      f'--tokenizer={tmp_path}/vocab.txt',
      f'--output={tmp_path}/run',
      *test_convert.SIZES,
    )
  model = trained.load(tmp_path / 'run')
  params = flatten_dict(jax.device_get(model.params), sep='/')
  for path, array in original_files.read(state, model.model.config).items():
    np.testing.assert_array_equal(params[path], array, err_msg=path)
