"""Image-text weights of made-up files, whose names and shapes are those of the tables."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from alpro_jax import sharding
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.shared import abstract_params
from alpro_jax.weights import convert, image_text, tables, tensor_files, tower_names
from configs import models, pretrain_prompter
from tests import original_files, small_towers, test_convert

WORDS, LENGTH = 517, 8  # Of small_towers.


def parts():
  """Options of a small CLIP, and the table of its tensors by Hugging Face's names."""
  config = models.PRESETS['tiny_clip']()
  config.text_tower.update({'vocab_size': WORDS, 'end_id': WORDS - 1, 'max_positions': LENGTH})
  values = config.to_dict() | {'text': None}
  rows = tower_names.video_rows('transformers', values['video'], flat_patches=False)
  rows += tower_names.text_rows('transformers', values['text_tower'])
  for theirs, ours in (('visual', 'video'), ('text', 'text')):
    rows += tables.rows_of([(tower_names.NO_BIAS, f'{theirs}_projection', f'{ours}_projection')])
  return AlproConfig.from_dict(values), rows


def make_params():
  """Random parameters of the small CLIP, by path, and its tensors by name."""
  config, rows = parts()
  abstract = flatten_dict(abstract_params(Alpro(config), sharding.make_mesh()), sep='/')
  rng = np.random.default_rng(0)
  params = {
    path: rng.normal(size=abstract[path].shape).astype(np.float32)
    for row in rows
    for path in row.ours
  }
  tensors = {
    row.original: row.layout.to_original(*(params[path] for path in row.ours)) for row in rows
  }
  tensors['logit_scale'] = np.float32(4.0)[None].reshape(())
  tensors['text_model.embeddings.position_ids'] = np.arange(LENGTH)[None]
  return params, tensors


def described():
  """What config.json says of it."""
  video, text = parts()[0].video, parts()[0].text_tower
  same = {'hidden_act': 'quick_gelu', 'num_attention_heads': video.heads}
  return {
    'model_type': 'clip',
    'vision_config': {
      'hidden_size': video.width, 'patch_size': video.patch_size, 'image_size': video.image_size
    } | same,
    'text_config': {
      'vocab_size': WORDS, 'num_hidden_layers': text.depth, 'eos_token_id': 2
    } | same,
  }  # fmt: skip


def write(folder, tensors, said=None, name='config.json', words=True):
  """Writes a folder of weights in two files, with what they say and a tokenizer."""
  if words:
    small_towers.write(folder, LENGTH)
    (folder / 'open_clip_config.json').unlink()
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(json.dumps(said or described()))
  names, index = list(tensors), {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f'model-{i}.safetensors'
    arrays = {x: np.asarray(tensors[x]) for x in part}
    tensor_files.write_tensors(folder / file, arrays)
    index |= dict.fromkeys(part, file)
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  return folder


def run(folder, output, **options):
  """Converts it within this process."""

  def get_config(task):
    config = pretrain_prompter.get_config()
    config.model = models.clip_b16()
    return config

  options = {'image_text': str(folder), 'output': str(output)} | options
  (one,) = image_text.from_image_text(convert.Options(paper_config=get_config, **options))
  return one


def test_a_folder_makes_a_model_that_contrasts(tmp_path):
  """As the command has it: every tensor in its place, and nothing learned about time."""
  params, tensors = make_params()
  write(tmp_path / 'clip', tensors)
  processor = {
    'do_center_crop': True,
    'size': {'shortest_edge': 56},
    'image_mean': [0.1, 0.2, 0.3],
    'image_std': [1, 1, 1],
  }
  (tmp_path / 'clip' / 'preprocessor_config.json').write_text(json.dumps(processor))
  said = test_convert.convert(
    f'--image_text={tmp_path}/clip', '--frames=3', f'--output={tmp_path}/out'
  )
  assert 'text tower 64 x 2, 2 heads, 517 words' in said
  assert 'text_model.embeddings.position_ids: the numbers 0, 1, 2' in said
  assert 'temporal_norm and temporal_attention of every block' in said
  _, model, stored = test_convert.stored(tmp_path / 'out')
  for path, array in params.items():
    np.testing.assert_array_equal(stored[path], array, err_msg=path)
  np.testing.assert_allclose(stored['temperature'], np.exp(-4), rtol=1e-6)
  for path in set(stored) - set(params) - {'temperature'}:
    assert path.startswith('video_encoder/') and ('/temporal_' in path or path.endswith('/times'))
    assert ('temporal_fc' not in path and 'times' not in path) or not stored[path].any()
  config = model.config
  assert model.model.config.video.pixel_mean == (0.1, 0.2, 0.3) and config.task == 'prompter'
  data = config.data
  assert (data.image_size, data.resize, data.resize_mode) == (48, 56, 'short_side')
  assert data.frames == config.model.video.frames == 3
  assert data.max_text_tokens == data.max_tower_tokens == LENGTH
  assert config.eval.scoring == 'similarity' and not config.model.get('text')
  assert model.tokenizer.kind == 'tower' and model.tokenizer.rules.context == LENGTH


def test_a_bert_adds_a_fusion_encoder(tmp_path):
  params, tensors = make_params()
  folder = write(tmp_path / 'clip', tensors)
  bert = tmp_path / 'bert'
  bert.mkdir()
  original_files.write_vocabulary(bert)
  tensor_files.write_tensors(bert / 'model.safetensors', original_files.bert())
  one = run(folder, tmp_path / 'out', bert=str(bert), heads=4, image_size=96)
  assert one.model.config.text.depth == 4 and one.model.config.match
  found = flatten_dict(one.params, sep='/')
  student = original_files.student()
  np.testing.assert_array_equal(
    found['fusion_encoder/layer3/mlp/fc2/bias'],
    student['text_encoder.bert.encoder.layer.3.output.dense.bias'],
  )
  np.testing.assert_array_equal(found['text_tower/words'], params['text_tower/words'])
  assert found['video_encoder/positions'].shape == (64, 64) and one.config.data.resize == 96
  assert 'match_head: all 2' in one.notes['from the seed']
  words = tmp_path / 'out' / 'checkpoints' / '0'
  names = {path.name for path in words.rglob('*') if path.is_file()}
  assert {'vocab.txt', 'tower.json'} <= names


def changed(part, **values):
  """config.json with other values in one part."""
  said = described()
  (said[part] if part else said).update(values)
  return said


def without(tensors, *names):
  return {name: x for name, x in tensors.items() if name not in names}


NORM = 'vision_model.encoder.layers.1.layer_norm1.weight'


@pytest.mark.parametrize(
  'change, said, options, message',
  [
    (lambda x: without(x, NORM), None, {}, f'1 missing: {NORM}'),
    (
      lambda x: x | {'visual_projection.bias': np.ones(4, np.float32)},
      None,
      {},
      '1 not known: vis',
    ),
    (lambda x: x | {NORM: np.ones(3, np.float32)}, None, {}, rf'1 do not fit: {NORM} is float32'),
    (lambda x: without(x, 'logit_scale'), None, {}, '1 missing: logit_scale'),
    (lambda x: x | {'logit_scale': np.float32(9)}, None, {}, 'temperature of 0.000123, expected'),
    (lambda x: {'a': np.ones(2, np.float32)}, None, {}, 'no tensor is named vision_model'),
    (dict, changed('', model_type='bert'), {}, "model_type='bert', expected one of"),
    (dict, changed('vision_config', hidden_act='relu'), {}, "hidden_act='relu'"),
    (dict, changed('text_config', num_hidden_layers=3), {}, 'num_hidden_layers=3 in text_config'),
    (dict, changed('text_config', eos_token_id=7), {}, 'a text ends with the id 516'),
    (dict, None, {'image_size': 50}, 'must be a multiple of 12'),
    (dict, None, {'open_clip': 'none/such'}, 'is no file, and no config of an installed'),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, change, said, options, message):
  folder = write(tmp_path / 'clip', change(make_params()[1]), said)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    run(folder, tmp_path / 'out', **options)
  assert not (tmp_path / 'out').exists()


def test_words_that_no_text_has_are_left_out(tmp_path):
  """And a tokenizer of more ids than there are vectors is another's."""
  _, tensors = make_params()
  words = 'text_model.embeddings.token_embedding.weight'
  more = np.concatenate([tensors[words], tensors[words][:3]])
  said = changed('text_config', vocab_size=WORDS + 3, eos_token_id=WORDS - 1)
  one = run(write(tmp_path / 'more', tensors | {words: more}, said), tmp_path / 'out')
  assert one.notes['cut'] == [f'{words}: the last 3 of 520 words, which no text has']
  np.testing.assert_array_equal(one.params['text_tower']['words'], tensors[words])
  said = changed('text_config', vocab_size=500)
  with pytest.raises(ValueError, match='517 ids, but the weights have vectors for 500'):
    run(write(tmp_path / 'fewer', tensors | {words: more[:500]}, said), tmp_path / 'other')


OPEN_CLIP = {'embed_dim': 8, 'vision_cfg': {'layers': 1, 'width': 64}, 'text_cfg': {'layers': 1}}


@pytest.mark.parametrize(
  'config, message',
  [
    (None, 'open_clip_config.json is not beside them'),
    ({'vision_cfg': {'attentional_pool': True}}, "'attentional_pool': True.* in vision_cfg"),
    ({'vision_cfg': {'timm_model_name': 'convnext_base'}}, "'convnext_base' of timm"),
    ({'multimodal_cfg': {'layers': 1}}, "'multimodal_cfg'.* in model_cfg"),
    ({'text_cfg': {'hf_model_name': 'roberta'}}, "'hf_model_name': 'roberta'.* in text_cfg"),
  ],
)
def test_towers_that_are_not_built_are_refused(tmp_path, config, message):
  small_towers.write(tmp_path / 'a', LENGTH)
  tensors = {'visual.conv1.weight': np.ones((4, 3, 2, 2), np.float32)}
  if config is not None:
    file = tmp_path / 'a' / 'open_clip_config.json'
    file.write_text(json.dumps({'model_cfg': OPEN_CLIP | config}))
  else:
    (tmp_path / 'a' / 'open_clip_config.json').unlink()
  tensor_files.write_tensors(tmp_path / 'a' / 'open_clip_model.safetensors', tensors)
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 'a', tmp_path / 'out')


def test_a_model_of_towers_does_not_go_out_as_the_original(tmp_path):
  with pytest.raises(ValueError, match='no towers of image-text models'):
    tables.rename_table(parts()[0])


def test_flags_that_do_not_go_together(tmp_path):
  mistakes = {
    ('--image_text=a', '--vit=b'): 'exactly one of',
    ('--image_text=a', '--tokenizer=b'): '--tokenizer and --fusion_layer are of a --bert',
    ('--bert=a', '--open_clip=b'): '--open_clip goes with --image_text alone',
  }
  done = test_convert.session(*((*flags, f'--output={tmp_path}/out') for flags in mistakes))
  for (code, said), message in zip(done, mistakes.values(), strict=True):
    assert code == 2 and message in said, said
