"""Trims arrays recorded from the PyTorch original to what tests/ keeps.

  python -m tests.golden.trim FOLDER

FOLDER holds golden_small_*.npz, grads_small_*.npz, state_small_*.npz and
golden_adamw_small_*.npz. Weights and inputs stay whole. Of every other array
LIMIT entries stay, evenly spaced over the flattened array, with its shape and
its largest magnitude. The teacher's weights are left out: its feature of the
crop takes their place.
"""

import json
import math
import pathlib
import sys

import numpy as np

LIMIT = 48
TAGS = ('pretrain', 'prompter', 'retrieval')
KEPT_OF_TEACHER = ('prompter.temp', 'prompter.video_prompt_feat')
# Kept whole: the test computes with them.
WHOLE = ('teacher.crop_video_feat', 'pseudo_labels', 'out.mpm_logits')
DERIVED = ('crop_visual_inputs', 'context_visual_inputs')
FILE = pathlib.Path(__file__).parent / 'model.npz'
ANSWERS_FILE = pathlib.Path(__file__).parent / 'answers.npz'
# Random in the recording of question answering, which never reads them.
NOT_READ = ('temp', 'vision_proj', 'text_proj', 'itm_head')


def pick(array, limit):
  """The entries of a flattened array that are kept, in order."""
  flat = np.asarray(array).reshape(array.size)
  if limit is None or flat.size <= limit:
    return flat
  return flat[np.linspace(0, flat.size - 1, limit).astype(int)]


def trim(folder, limit):
  """Reads FOLDER; limit None keeps everything.

  Returns:
    weights {name: array}, inputs {name: array}, records {TAG/KIND/NAME: (kept
    entries, shape, largest magnitude)} and the sizes of the model.
  """
  folder = pathlib.Path(folder)

  def load(name):
    with np.load(folder / name) as file:
      return dict(file)

  weights, inputs, records = {}, {}, {}

  def record(tag, kind, name, array):
    array = np.asarray(array)
    scale = float(np.abs(array.astype(np.float64)).max())
    kept = pick(array, None if name in WHOLE else limit)
    records[f'{tag}/{kind}/{name}'] = kept, array.shape, scale

  states = {tag: load(f'state_small_{tag}.npz') for tag in TAGS}
  # The student is one and the same in all three.
  for name, array in states['pretrain'].items():
    if not name.startswith('prompter.'):
      for tag in TAGS:
        if name in states[tag]:
          np.testing.assert_array_equal(array, states[tag][name])
    if (
      limit is None
      or name in KEPT_OF_TEACHER
      or not (name.startswith('prompter.') or '.head.' in name or '.decoder.' in name)
    ):
      weights[name] = array
  for tag in TAGS:
    for name, array in load(f'golden_small_{tag}.npz').items():
      if name.startswith('in.'):
        if name in inputs:
          np.testing.assert_array_equal(array, inputs[name])
        # The crop is the clip inside the region; the context is never read.
        elif limit is None or name[3:] not in DERIVED:
          inputs[name] = array
      elif not name.startswith('grad.'):  # grads_small_* has them all.
        record(tag, 'out', name, array)
    for name, array in load(f'grads_small_{tag}.npz').items():
      record(tag, 'grad', name, array)
  for tag in ('pretrain', 'retrieval'):
    for name, array in load(f'golden_adamw_small_{tag}.npz').items():
      if '.head.' not in name:
        record(tag, 'adamw', name, array)
  sizes = json.loads((folder / 'golden_small_pretrain.json').read_text())
  return weights, inputs, records, sizes['config']


def trim_answers(folder, limit):
  """Reads the recording of question answering; see trim.

  Returns:
    The weights of its classifier (the others are the student's), its labels as
    in.labels, and its records as qa/KIND/NAME.
  """
  folder = pathlib.Path(folder)

  def load(name):
    with np.load(folder / name) as file:
      return dict(file)

  student, weights, records = load('state_small_pretrain.npz'), {}, {}
  for name, array in load('state_small_qa.npz').items():
    if name.startswith('classifier.'):
      weights[name] = array
    elif not name.startswith(NOT_READ) and name not in student:
      theirs = name.replace('text_encoder.', 'text_encoder.bert.')
      np.testing.assert_array_equal(array, student[theirs])
  recorded = load('golden_small_qa.npz')
  for kind, arrays in (('out', recorded), ('grad', load('grads_small_qa.npz'))):
    for name, array in arrays.items():
      if not name.startswith(('in.', 'grad.')):
        scale = float(np.abs(np.float64(array)).max())
        records[f'qa/{kind}/{name}'] = pick(array, limit), array.shape, scale
  return weights, {'in.labels': recorded['in.labels']}, records


def pack(path, weights, inputs, records, sizes):
  """Writes one array of weights, one of records, and an index of both.

  Of equal records one is written; the index sends the others to it.
  """
  index, written, entries = {}, {}, []
  for name, (kept, shape, scale) in records.items():
    identity = (np.float32(kept).tobytes(), tuple(shape))
    if identity in written:
      index[name] = written[identity]
      continue
    written[identity] = name
    index[name] = (len(kept), shape, scale)
    entries.append(kept)
  index = {'sizes': sizes, 'weights': {k: v.shape for k, v in weights.items()}, 'records': index}
  np.savez_compressed(
    path,
    index=np.array(json.dumps(index)),
    weights=_join(weights.values()),
    records=_join(entries),
    **inputs,
  )


def unpack(path):
  """Reads what `pack` wrote."""
  with np.load(path) as file:
    inputs = dict(file)
  index = json.loads(str(inputs.pop('index')))
  weights, records = {}, {}
  start, array = 0, inputs.pop('weights')
  for name, shape in index['weights'].items():
    stop = start + math.prod(shape)
    weights[name], start = array[start:stop].reshape(shape), stop
  start, array = 0, inputs.pop('records')
  for name, entry in index['records'].items():
    if isinstance(entry, str):
      records[name] = records[entry]
      continue
    count, shape, scale = entry
    stop = start + count
    records[name], start = (array[start:stop], tuple(shape), scale), stop
  return weights, inputs, records, index['sizes']


def _join(arrays):
  return np.concatenate([np.float32(x).reshape(np.size(x)) for x in arrays])


def main():
  pack(FILE, *trim(sys.argv[1], LIMIT))
  pack(ANSWERS_FILE, *trim_answers(sys.argv[1], LIMIT), {})
  for file in (FILE, ANSWERS_FILE):
    print(f'{file.name}: {file.stat().st_size} bytes')


if __name__ == '__main__':
  main()
