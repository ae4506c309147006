"""Agreement with arrays recorded from the PyTorch original, to 1e-5.

The small model of tests/golden has random weights in every parameter. The
committed file holds 48 entries of every array; with ALPRO_GOLDEN=FOLDER the
folder it was trimmed from is compared whole, the teacher's video encoder too.
"""

import dataclasses
import os

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from alpro_jax import contrastive, losses, masking
from alpro_jax.models import prompter
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.models.timesformer import PIXEL_MEAN, PIXEL_STD, resize_times
from alpro_jax.train import optimizer
from alpro_jax.weights import tables
from tests import original_files
from tests.golden import trim

# The original in float32 and in float64 differs by up to 2e-6 relative.
TOLERANCE = 1e-5
FOLDER = os.environ.get('ALPRO_GOLDEN')
B, T = 4, 4


@pytest.fixture(scope='module')
def golden():
  return trim.trim(FOLDER, None) if FOLDER else trim.unpack(trim.FILE)


@pytest.fixture(scope='module')
def config(golden):
  sizes, bert = golden[3], golden[3]['bert']
  video = {
    'image_size': sizes['img_size'],
    'patch_size': 16,
    'frames': sizes['num_frm'],
    'width': sizes['vis']['embed_dim'],
    'depth': sizes['vis']['depth'],
    'heads': sizes['vis']['num_heads'],
    'mlp_size': 4 * sizes['vis']['embed_dim'],
    'attention': 'divided',
    'drop_path': 0.1,
    'dropout': 0.0,
    'matrix_std': 0.02,
    'temporal_fc_std': 0.0,
    'position_std': 0.02,
    'time_std': 0.0,
    'smooth_positions': False,
  }
  text = {
    'vocab_size': bert['vocab_size'],
    'width': bert['hidden_size'],
    'depth': bert['num_hidden_layers'],
    'fusion_layer': bert['fusion_layer'],
    'heads': bert['num_attention_heads'],
    'mlp_size': bert['intermediate_size'],
    'max_positions': bert['max_position_embeddings'],
    'dropout': 0.1,
    'matrix_std': 0.02,
    'word_std': 0.02,
    'position_std': 0.02,
    'mlm_logit_scale': 1.0,
  }
  return AlproConfig.from_dict(
    {
      'video': video,
      'text': text,
      'embed_size': 256,
      'temperature': 0.07,
      'entities': sizes['num_entities'],
      'dtype': 'float32',
      'remat': 'none',
    }
  )


@pytest.fixture(scope='module')
def golden_answers():
  """As golden, of question answering."""
  if FOLDER:
    return (*trim.trim_answers(FOLDER, None), {})
  return trim.unpack(trim.ANSWERS_FILE)


@pytest.fixture(scope='module')
def params(golden, config):
  student = {k: v for k, v in golden[0].items() if not k.startswith('prompter.')}
  return unflatten_dict(original_files.read(student, config), sep='/')


@pytest.fixture(scope='module')
def inputs(golden):
  x = golden[1]
  to_thwc = 'b t c h w -> b t h w c'
  values = {
    'video': einops.rearrange(x['in.visual_inputs'], to_thwc),
    'ids': x['in.text_input_ids'].astype(np.int32),
    'mask': x['in.text_input_mask'].astype(bool),
    'masked_ids': x['in.mlm_text_input_ids'].astype(np.int32),
    'labels': np.maximum(x['in.mlm_labels'], -1).astype(np.int32),
    'region': einops.rearrange(x['in.mpm_mask'] == 0, 'b h w -> b (h w)'),
  }
  return jax.tree.map(jnp.asarray, values)


@pytest.fixture(scope='module')
def expected(golden, golden_answers):
  """Compares an array with the record of that name."""
  records = golden[2] | golden_answers[2]

  def compare(name, ours, floor=0.0):
    entries, shape, scale = records[name]
    ours = np.asarray(ours)
    assert ours.shape == shape, name
    limit = None if len(entries) == ours.size else trim.LIMIT
    kept = trim.pick(ours, limit)
    error = np.abs(np.float64(kept) - np.float64(entries)).max()
    errors[name] = error = error / max(scale, floor, 1e-30)
    assert error <= TOLERANCE, f'{name}: {error:.1e} relative'

  errors = {}
  yield compare
  worst = sorted(errors, key=errors.get)[-5:]
  print(f'{len(errors)} records, worst:', {k: errors[k] for k in worst})


def forward(config, params, inputs, label, *, tag, negatives=None):
  """The losses of a program of the original, in evaluation mode.

  Args:
    config: of the model.
    params: of the model.
    inputs: the batch.
    label: q and keep of PEM, or None.
    tag: pretrain, prompter or retrieval.
    negatives: the videos of texts and the texts of videos; None takes the most
      similar ones, as the recording did.
  Returns:
    The total loss and everything on the way by the recording's names.
  """
  model = Alpro(config).bind({'params': params})
  out = {}
  video = model.encode_video(inputs['video'], train=False)
  text = model.encode_text(inputs['ids'], inputs['mask'], train=False)
  temperature = model.temperature()
  out |= {'video_feat': video.feature, 'text_feat': text.feature}
  out |= {'video_embeds': video.tokens, 'text_embeds': text.tokens}
  scores = contrastive.similarity(video.feature, text.feature, temperature)
  out |= {'sim_v2t': scores, 'sim_t2v': scores.T}
  out['out.i2t_scores'] = jax.nn.log_softmax(scores)
  out['out.t2i_scores'] = jax.nn.log_softmax(scores.T)
  pair = contrastive.Features(video.feature, text.feature)
  vtc = losses.mean(*contrastive.vtc(pair, temperature)[:2])
  out['out.itc_loss'] = total = vtc
  if tag == 'prompter':
    return total, out | {'out.total_loss': total}

  off_diagonal = jnp.where(jnp.eye(B, dtype=bool), -jnp.inf, scores)
  videos = jnp.argmax(off_diagonal.T, axis=1)
  texts = jnp.argmax(off_diagonal, axis=1)
  if negatives is not None:
    videos, texts = negatives
  out['neg_video_idx_for_each_text'] = videos
  out['neg_text_idx_for_each_video'] = texts
  pairs = [
    (text.tokens, inputs['mask'], video.tokens),
    (text.tokens, inputs['mask'], video.tokens[videos]),
    (text.tokens[texts], inputs['mask'][texts], video.tokens),
  ]
  if tag == 'pretrain':
    mask = inputs['mask']
    masked = model.encode_text(inputs['masked_ids'], mask, train=False)
    pairs.append((masked.tokens, mask, video.tokens))
  stacked = [jnp.concatenate(kind) for kind in zip(*pairs, strict=True)]
  fused = model.fuse(*stacked, train=False)
  out['fusion_pos_last_hidden'] = fused[:B]
  labels = jnp.repeat(jnp.array([1, 0, 0]), B)
  logits = model.match_logits(fused[: 3 * B, 0])
  vtm = losses.mean(*losses.vtm(logits, labels, jnp.ones(3 * B)))
  out |= {'out.itm_scores': logits, 'out.itm_labels': labels}
  out['out.itm_loss'] = vtm
  total += vtm
  if tag == 'pretrain':
    length = inputs['ids'].shape[1]
    logits = model.mlm_logits(fused[3 * B :, :length])
    mlm = losses.mean(*losses.mlm(logits, inputs['labels']))
    out |= {'out.mlm_scores': logits, 'out.mlm_loss': mlm}
    region = inputs['region'].astype(jnp.float32)
    patches = fused[:B, length + 1 :]
    pooled = jnp.einsum('bnd,bn->bd', patches, region)
    logits = model.entity_logits(pooled / region.sum(axis=1, keepdims=True))
    q, keep = label
    pem = losses.mean(*losses.pem(logits, q, keep))
    single = [losses.pem(logits[i], q[i], jnp.array(True))[0] for i in range(B)]
    out |= {'out.mpm_logits': logits, 'out.mpm_loss': pem}
    out['mpm_ce_per_sample_before_ignore'] = jnp.stack(single)
    total += mlm + pem
  return total, out | {'out.total_loss': total}


def whole(golden, name):
  """A record that was kept whole, in its shape."""
  entries, shape, _ = golden[2][f'pretrain/out/{name}']
  return jnp.asarray(entries).reshape(shape)


def recorded_label(golden, rule):
  name = {'index': 'ignore_mask', 'probability': 'ignore_mask_intended_maxprob_lt_0p2'}[rule]
  return whole(golden, 'pseudo_labels'), ~whole(golden, name).astype(bool)


def capture(config, params, method, *args):
  """The output of every submodule, by its path."""

  def apply(params, *args):
    return Alpro(config).apply(
      {'params': params},
      *args,
      train=False,
      method=method,
      capture_intermediates=True,
      mutable=['intermediates'],
    )

  _, state = jax.jit(apply)(params, *args)
  flat = flatten_dict(state['intermediates'], sep='/')
  return {k.removesuffix('/__call__'): v[0] for k, v in flat.items()}


def check_video(expected, prefix, out, *, patches_of_frames):
  """Compares the video encoder's insides, in the original's token order."""

  def original_order(x):
    # Ours: class token, then frame by frame. Theirs: place by place.
    patches = einops.rearrange(x[:, 1:], 'b (t n) d -> b (n t) d', t=T)
    return np.concatenate([x[:, :1], patches], axis=1)

  merge = 'b s n d -> (b s) n d'
  inside = 'video_encoder/block0'
  expected(f'{prefix}vis.patch_embed', einops.rearrange(out['video_encoder/patch_embed'], merge))
  expected(
    f'{prefix}vis.block0.temporal_attn',
    einops.rearrange(out[f'{inside}/temporal_attention'], merge),
  )
  expected(
    f'{prefix}vis.block0.temporal_fc',
    einops.rearrange(out[f'{inside}/temporal_fc'], 'b n t d -> b (n t) d'),
  )
  expected(f'{prefix}vis.block0.attn', einops.rearrange(out[f'{inside}/attention'], merge))
  expected(f'{prefix}vis.block0.mlp', original_order(out[f'{inside}/mlp']))
  for i in range(patches_of_frames):
    block = out[f'video_encoder/block{i}']
    expected(f'{prefix}vis.block{i}', original_order(block))
  expected(f'{prefix}vis.norm_all_tokens', original_order(out['video_encoder/norm']))
  expected(f'{prefix}video_embeds', out['video_encoder'])


def test_weights_survive_the_way_there_and_back(golden, config, params):
  back = tables.to_original(params, config)
  assert list(back) == [row.original for row in tables.rename_table(config)]
  for name, array in back.items():
    np.testing.assert_array_equal(array, golden[0][name], err_msg=name)


def test_table_refuses_what_the_original_does_not_have(config):
  video = dataclasses.replace(config.video, attention='joint')
  with pytest.raises(ValueError, match='divided attention only'):
    tables.rename_table(dataclasses.replace(config, video=video))


def test_table_covers_every_parameter(config, params):
  boxed = jax.eval_shape(
    lambda key: Alpro(config).init(
      key,
      jnp.zeros((1, T, 64, 64, 3), jnp.uint8),
      jnp.zeros((1, 2), jnp.int32),
      jnp.ones((1, 2), bool),
      method='init_all',
    ),
    jax.random.key(0),
  )
  shapes = jax.tree.map(lambda x: x.shape, nn.unbox(boxed)['params'])
  assert shapes == jax.tree.map(lambda x: x.shape, params)


def test_every_layer_agrees(golden, config, params, inputs, expected):
  def names(name, array):
    expected(f'pretrain/out/{name}', array)

  out = capture(config, params, 'encode_video', inputs['video'])
  check_video(names, '', out, patches_of_frames=config.video.depth)
  names('vision_proj_out', out['video_projection'])
  video = out['video_encoder']

  tokens = []
  for suffix, ids in (('', inputs['ids']), ('#1', inputs['masked_ids'])):
    out = capture(config, params, 'encode_text', ids, inputs['mask'])
    names(f'txt.embeddings{suffix}', out['text_embedding'])
    for i in range(config.text.fusion_layer):
      names(f'txt.layer{i}{suffix}', out[f'text_encoder/layer{i}'])
    tokens.append(out['text_encoder'])
    if not suffix:
      names('text_proj_out', out['text_projection'])

  videos = whole(golden, 'neg_video_idx_for_each_text').astype(int)
  texts = whole(golden, 'neg_text_idx_for_each_video').astype(int)
  mask = inputs['mask']
  calls = {
    '': (tokens[0], mask, video),
    '#1': (
      jnp.concatenate([tokens[0], tokens[0][texts]]),
      jnp.concatenate([mask, mask[texts]]),
      jnp.concatenate([video[videos], video]),
    ),
    '#2': (tokens[1], mask, video),
  }
  for suffix, arguments in calls.items():
    out = capture(config, params, 'fuse', *arguments)
    for i in range(config.text.fusion_layer, config.text.depth):
      names(f'txt.layer{i}{suffix}', out[f'fusion_encoder/layer{i}'])


@pytest.fixture(scope='module')
def gradients(golden, config, inputs):
  """By tag: parameters -> ((total, everything on the way), gradients)."""
  label = recorded_label(golden, 'index')

  def make(tag):
    return jax.jit(
      jax.value_and_grad(lambda p: forward(config, p, inputs, label, tag=tag), has_aux=True)
    )

  return {tag: make(tag) for tag in trim.TAGS}


@pytest.mark.parametrize('tag', trim.TAGS)
def test_losses_and_gradients_agree(golden, config, params, expected, gradients, tag):
  (_, out), grads = gradients[tag](params)
  # Each program recorded some of the arrays.
  shared = [name for name in out if f'{tag}/out/{name}' in golden[2]]
  assert len(shared) >= {'pretrain': 17, 'retrieval': 10, 'prompter': 6}[tag]
  for name in shared:
    expected(f'{tag}/out/{name}', out[name])
  expected(f'{tag}/out/grad_global_norm', optax.tree.norm(grads))
  for name, array in tables.to_original(grads, config).items():
    if f'{tag}/grad/{name}' in golden[2]:
      # A key's bias has no gradient but rounding: measured by the query's.
      query = f'{tag}/grad/{name.replace("key.bias", "query.bias")}'
      expected(f'{tag}/grad/{name}', array, floor=golden[2][query][2])
    else:
      assert tag != 'pretrain', name
      np.testing.assert_array_equal(array, 0, err_msg=name)


@pytest.mark.parametrize('implementation', ['plain', 'fused'])
def test_question_answering_agrees(
  golden, golden_answers, config, inputs, expected, implementation
):
  """Every layer of the pair, the loss and the gradients of every parameter."""
  state = {
    k.replace('text_encoder.bert.', 'text_encoder.'): v
    for k, v in golden[0].items()
    if not k.startswith(('prompter.', 'mpm_head', 'text_encoder.cls'))
  } | golden_answers[0]
  config = dataclasses.replace(
    config,
    embed_size=0,
    match=False,
    mlm=False,
    entities=0,
    answers=15,
    implementation=implementation,
  )
  params = unflatten_dict(original_files.read(state, config), sep='/')
  labels = jnp.asarray(golden_answers[1]['in.labels'], jnp.int32)

  def loss(params):
    model = Alpro(config).bind({'params': params})
    video = model.encode_video(inputs['video'], train=False)
    text = model.encode_text(inputs['ids'], inputs['mask'], train=False)
    fused = model.fuse(text.tokens, inputs['mask'], video.tokens, train=False)
    logits = model.answer_logits(fused[:, 0])
    total = losses.mean(*losses.answering(logits, labels))
    return total, {
      'video_embeds': video.tokens,
      'txt.layer1': text.tokens,
      'txt.layer3': fused,
      'out.logits': logits,
      'out.loss': total,
      'out.total_loss': total,
    }

  (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  for name, array in out.items():
    expected(f'qa/out/{name}', array)
  expected('qa/out/grad_global_norm', optax.tree.norm(grads))
  records = golden_answers[2]
  ours = tables.to_original(grads, config)
  assert set(ours) == {name.removeprefix('qa/grad/') for name in records if '/grad/' in name}
  for name, array in ours.items():
    query = f'qa/grad/{name.replace("key.bias", "query.bias")}'
    expected(f'qa/grad/{name}', array, floor=records[query][2])


def test_both_ignore_rules_agree(golden, expected):
  bank = jnp.asarray(golden[0]['prompter.video_prompt_feat'])
  temperature = jnp.asarray(golden[0]['prompter.temp'])
  feature = whole(golden, 'teacher.crop_video_feat')
  for rule, loss in (('index', 'out.mpm_loss'), ('probability', 'mpm_loss_if_maxprob_rule')):
    q, keep = prompter.pseudo_labels(
      feature,
      prompter.PromptBank(video=bank, image=0 * bank),
      jnp.zeros(B, bool),
      temperature,
      rule=rule,
      threshold=0.2,
    )
    expected('pretrain/out/pseudo_labels', q)
    expected('pretrain/out/out.mpm_labels', q)
    np.testing.assert_array_equal(keep, recorded_label(golden, rule)[1])
    assert keep.sum() == 3
    pem = losses.mean(*losses.pem(whole(golden, 'out.mpm_logits'), q, keep))
    expected(f'pretrain/out/{loss}', pem)


@pytest.mark.parametrize('tag', ('pretrain', 'retrieval'))
def test_four_updates_agree(golden, config, params, expected, gradients, tag):
  schedule = optimizer.make_schedule(
    learning_rate=1e-3, schedule='linear', steps=10, warmup_steps=2, final_fraction=0.0
  )
  tx = optimizer.make_optimizer(
    schedule, b1=0.9, b2=0.98, eps=1e-6, eps_rule='original', weight_decay=0.0, clip_norm=5.0
  )
  state = tx.init(params)

  @jax.jit
  def update(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for step in range(1, 5):
    here = f'{tag}/adamw/step{step}'
    (loss, _), grads = gradients[tag](params)
    expected(f'{here}.lr', schedule(step - 1))
    expected(f'{here}.loss', loss)
    expected(f'{here}.gradnorm_before_clip', optax.tree.norm(grads))
    params, state = update(params, state, grads)
    ours = tables.to_original(params, config)
    for name in golden[2]:
      if name.startswith(f'{here}.param.'):
        expected(name, ours[name.removeprefix(f'{here}.param.')])


def test_crop_is_the_clip_inside_the_region(golden, config, inputs):
  mean, std = jnp.array(PIXEL_MEAN), jnp.array(PIXEL_STD)
  pixels = jnp.round((inputs['video'] * std + mean) * 255).astype(jnp.uint8)
  crop = masking.crop_regions(pixels, inputs['region'], 16)
  inside = np.kron(inputs['region'].reshape(B, 4, 4), np.ones((16, 16))).astype(bool)
  assert inside.any() and not inside.all()
  for frame in range(T):
    np.testing.assert_array_equal(crop[:, frame][~inside], 0)
    np.testing.assert_array_equal(crop[:, frame][inside], pixels[:, frame][inside])


def test_times_resize_as_the_original():
  for old, new, rows in (
    (4, 8, [0, 0, 1, 1, 2, 2, 3, 3]),
    (8, 4, [0, 2, 4, 6]),
    (4, 3, [0, 1, 2]),
    (3, 4, [0, 0, 1, 2]),
  ):
    table = jnp.arange(old, dtype=jnp.float32)[:, None]
    np.testing.assert_array_equal(resize_times(table, new)[:, 0], rows)


@pytest.mark.skipif(not FOLDER, reason='needs ALPRO_GOLDEN=FOLDER')
def test_teacher_agrees(golden, config, expected):
  config = dataclasses.replace(config, entities=0)
  teacher = {
    k.removeprefix('prompter.'): v
    for k, v in golden[0].items()
    if k.startswith('prompter.') and not k.endswith('prompt_feat')
  }
  params = unflatten_dict(original_files.read(teacher, config), sep='/')
  crop = einops.rearrange(golden[1]['in.crop_visual_inputs'], 'b t c h w -> b t h w c')
  out = capture(config, params, 'encode_video', crop)

  def names(name, array):
    expected(f'pretrain/out/{name}', array)

  check_video(names, 'teacher.', out, patches_of_frames=config.video.depth)
  names('teacher.vision_proj_out', out['video_projection'])
  feature = prompter.unit_length(out['video_projection'])
  names('teacher.crop_video_feat', feature)
  bank = jnp.asarray(golden[0]['prompter.video_prompt_feat'])
  names('teacher.sim_to_prompts', contrastive.similarity(feature, bank, golden[0]['prompter.temp']))


@pytest.mark.skipif(not FOLDER, reason='needs ALPRO_GOLDEN=FOLDER')
def test_prompt_banks_agree(config):
  config = dataclasses.replace(config, entities=0)
  with np.load(f'{FOLDER}/state_small_prompts.npz') as file:
    state = {k: v for k, v in file.items() if not k.endswith('prompt_feat')}
  params = unflatten_dict(original_files.read(state, config), sep='/')
  with np.load(f'{FOLDER}/golden_small_prompts.npz') as file:
    recorded = dict(file)
  for kind in ('video', 'image'):
    ids, mask = recorded[f'{kind}_ids'], recorded[f'{kind}_att']
    encoded = Alpro(config).apply(
      {'params': params}, ids.astype(np.int32), mask.astype(bool), train=False, method='encode_text'
    )
    rows = einops.rearrange(encoded.feature, '(k z) e -> k z e', k=12)
    bank = prompter.ensemble(rows, renormalize=False)
    want = recorded[f'{kind}_prompt_feat']
    assert np.abs(bank - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.skipif(not FOLDER, reason='needs ALPRO_GOLDEN=FOLDER')
def test_scores_of_one_video_against_four_texts_agree(config, params):
  with np.load(f'{FOLDER}/golden_small_retrieval_inference.npz') as file:
    x = dict(file)
  model = Alpro(config).bind({'params': params})
  video = model.encode_video(
    einops.rearrange(x['in.visual_inputs'], 'b t c h w -> b t h w c'), train=False
  )
  ids = x['in.text_input_ids'].astype(np.int32)
  mask = x['in.text_input_mask'].astype(bool)
  text = model.encode_text(ids, mask, train=False)
  tokens = jnp.repeat(video.tokens, len(ids), axis=0)
  fused = model.fuse(text.tokens, mask, tokens, train=False)
  logits = model.match_logits(fused[:, 0])
  scores = contrastive.similarity(video.feature, text.feature, model.temperature())
  for ours, name in (
    (logits, 'logits'),
    (scores, 'itc_scores'),
    (jax.nn.softmax(logits)[:, 1], 'itm_prob'),
  ):
    assert np.abs(ours - x[name]).max() <= TOLERANCE * np.abs(x[name]).max()
