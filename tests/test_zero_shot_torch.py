"""Retrieval by launch/evaluate.py against features that the original classes compute.

Skipped where torch, or the package in question, is not installed.
"""

import json

import jax
import numpy as np
import pytest

from alpro_jax.data import dataset, prepare, sources
from alpro_jax.evaluation import split, trained
from alpro_jax.weights import tensor_files
from tests import launched, small_towers, small_videos, test_image_text_torch
from tests.test_image_text_torch import FAMILIES, LENGTH, packages  # noqa: F401  A fixture.

torch = pytest.importorskip('torch')

CLIPS, FRAMES = 12, 3
CLIP_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CENTRED_PIXELS = (0.5,) * 3, (0.5,) * 3


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  """A prepared set whose frames, and captions, all differ."""
  folder = tmp_path_factory.mktemp('clips')
  rng, rows = np.random.default_rng(0), []
  for i in range(CLIPS):
    colours = [tuple(map(int, rgb)) for rgb in rng.integers(0, 256, (8, 3))]
    small_videos.write_video(folder / f'{i}.mp4', colours=colours)
    words = ' '.join(rng.choice(['dog', 'a', 'ru', 'x', 'k', 'q'], 3))
    rows.append({'video': f'{i}.mp4', 'caption': f'{i} {words}'})
  captions = small_videos.write_captions(folder, rows)
  options = prepare.Options(fps=0, short_side=0, part_size=6, quality=95)
  prepare.prepare(
    sources.read_folder(captions), folder, folder / 'set', num_workers=1, options=options
  )
  return folder / 'set'


def convert(family, packages, folder):  # noqa: F811
  """A checkpoint of a small model of a family, and what computes its features."""
  words = small_towers.write(folder / 'words', LENGTH)
  theirs = FAMILIES[family](packages, folder)
  options = {'tower_tokenizer': str(words), 'frames': FRAMES}
  one = test_image_text_torch.convert_folder(folder, folder / 'converted', **options)
  return one, theirs


def ranks_of(score):
  """float32[n, n], own in the diagonal -> int[n], the rank of each row's own."""
  return 1 + (score > np.diag(score)[:, None]).sum(axis=1)


@pytest.mark.parametrize(
  'family, pixels',
  [('clip', CLIP_PIXELS), ('siglip2', CENTRED_PIXELS), ('pe_core', CENTRED_PIXELS)],
)
def test_retrieval_is_that_of_their_features(family, pixels, packages, clips, tmp_path):  # noqa: F811
  """The mean over frames of image features, as users of these models rank clips."""
  _, theirs = convert(family, packages, tmp_path)
  output = tmp_path / 'card'
  flags = f'--checkpoint={tmp_path}/converted', f'--data={clips}', '--split=train'
  assert launched.run('evaluate', *flags, f'--output={output}') == 0

  # The same frames, cut and scaled alike; all from there on is theirs.
  model, prepared = trained.load(tmp_path / 'converted'), dataset.open_dataset(clips, 'train')
  captions = [record.captions[0] for record in prepared.metadata()]
  shown = np.concatenate([batch['video'] for batch in split.batches(model, prepared)])
  frames = torch.from_numpy(shown[:CLIPS]).flatten(0, 1).permute(0, 3, 1, 2) / 255
  mean, std = (torch.tensor(x)[:, None, None] for x in pixels)
  ids = torch.from_numpy(model.tokenizer.encode(captions, LENGTH)[0]).long()
  unit = torch.nn.functional.normalize
  with torch.no_grad():
    image, _, _ = theirs((frames - mean) / std, ids[:1])
    _, text, _ = theirs(((frames - mean) / std)[:1], ids)
  video = unit(unit(image, dim=-1).unflatten(0, (CLIPS, FRAMES)).mean(dim=1), dim=-1)
  score = (unit(text, dim=-1) @ video.T).numpy()
  own = np.diag(score)
  for other in (score - own[:, None], score - own[None]):  # No rank hangs on rounding.
    assert np.abs(other[~np.eye(CLIPS, dtype=bool)]).min() > 1e-6

  found = [json.loads(line) for line in (output / 'ranks.jsonl').read_text().splitlines()]
  found = {row['text']: row['rank'] for row in found}
  right = ranks_of(score)
  assert [found[caption] for caption in captions] == right.tolist() and len(set(right)) > 4
  metrics = json.loads((output / 'card.json').read_text())['metrics']
  for direction, ranks in (('t2v', right), ('v2t', ranks_of(score.T))):
    for name, value in {
      'r1': 100 * (ranks <= 1).mean(),
      'r5': 100 * (ranks <= 5).mean(),
      'r10': 100 * (ranks <= 10).mean(),
      'median_rank': np.median(ranks),
      'mean_rank': ranks.mean(),
    }.items():
      assert metrics[f'{direction}_{name}']['value'] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize(
  'family, name',
  [
    ('clip', 'pytorch_model.bin'),
    ('siglip2', 'pytorch_model.bin.index.json'),
    ('open_clip', 'open_clip_pytorch_model.bin'),
    ('pe_core_authors', 'PE-Core.pt'),
  ],
)
def test_files_of_torch_are_the_same_weights(family, name, packages, tmp_path):  # noqa: F811
  (tmp_path / 'whole').mkdir()
  (tmp_path / 'torch').mkdir()
  one, _ = convert(family, packages, tmp_path / 'whole')
  tensors = tensor_files.open_tensors(tensor_files.find(tmp_path / 'whole'))
  state = {x: torch.from_numpy(np.array(tensor.array)) for x, tensor in tensors.items()}
  if family == 'clip':  # Early files have them.
    state['text_model.embeddings.position_ids'] = torch.arange(LENGTH)[None]
  if name.endswith('.json'):  # In two parts.
    parts = {x: f'part-{i % 2}.bin' for i, x in enumerate(state)}
    (tmp_path / 'torch' / name).write_text(json.dumps({'weight_map': parts}))
  else:
    parts = dict.fromkeys(state, name)
  for part in set(parts.values()):
    torch.save({x: y for x, y in state.items() if parts[x] == part}, tmp_path / 'torch' / part)
  for said in (tmp_path / 'whole').glob('*config.json'):
    (tmp_path / 'torch' / said.name).write_text(said.read_text())
  path = tmp_path / 'torch' / (name if name.endswith('.pt') else '')
  options = {'tower_tokenizer': str(tmp_path / 'whole' / 'words'), 'frames': FRAMES}
  again = test_image_text_torch.convert_folder(path, tmp_path / 'again', **options)
  assert again.model.config == one.model.config
  jax.tree.map(np.testing.assert_array_equal, again.params, one.params)
