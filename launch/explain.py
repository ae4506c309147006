"""Shows what a model goes by in one clip: a page with heat maps.

  python launch/explain.py runs/pretrain "videos/a clip.mp4" \\
    "a red circle moves left" --output=explained.html

For each word of the text, which places of which frames speak for it
(integrated gradients by the pixels), where a layer of the fusion encoder looks
from it (Grad-CAM, and attention alone), what the prompter calls some regions
if the checkpoint was pre-trained with one, and where and when the video
encoder looks. A checkpoint of question answering is given a question. A model
whose fusion encoder was never trained, as converted image-text weights, is asked
what each word adds to the similarity.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import os
import pathlib

from absl import flags, logging

_OUTPUT = flags.DEFINE_string('output', 'explained.html', 'The page.')
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'Its file: only for checkpoints of earlier versions, if it has moved.'
)
_PROMPTER = flags.DEFINE_string('prompter', '', 'Checkpoint of the prompter, if it has moved.')
_ENTITIES = flags.DEFINE_string(
  'entities', '', 'List of entities: only for checkpoints of earlier versions, if it has moved.'
)
_LAYER = flags.DEFINE_integer('layer', None, 'Of the fusion encoder; by default the third of six.')
_START = flags.DEFINE_float('start', 0.0, 'Second where the clip starts.', 0.0)
_SECONDS = flags.DEFINE_float('seconds', 10.0, 'Length of the clip.', lower_bound=0.01)
_FPS = flags.DEFINE_float(
  'fps',
  8.0,
  'Frames per second among which those of the clip are chosen; 0 for all.',
  lower_bound=0.0,
)
_REGIONS = flags.DEFINE_integer('regions', 6, 'Regions to be named.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 16, 'Of integrated gradients; more is finer.', lower_bound=1)


def main(*words):
  logging.set_verbosity(logging.WARNING)
  if len(words) != 3 or not all(text.strip() for text in words):
    raise ValueError(
      f'got {list(words)}; give a checkpoint, a video and a text: explain.py '
      'runs/pretrain clip.mp4 "a red circle moves left".'
    )
  command.start()
  print(f'Written: {explain(*words)}')


def explain(checkpoint, video, text):
  """Writes the page; returns its path."""
  from alpro_jax import api, files
  from alpro_jax.evaluation import explain, trained
  from alpro_jax.evaluation.encoder import Encoder

  if not os.path.isfile(video):
    raise FileNotFoundError(f'{video} is not a file.')
  model = trained.load(api.find(checkpoint), tokenizer=_TOKENIZER.value)
  clip = _cut(video, model.config.data.frames)
  frames = Encoder(model).pixels([clip])[0]
  named, note = _load_prompter(model)
  shown = explain.explain(
    model,
    os.path.basename(video),
    frames,
    (clip.start, clip.stop),
    text,
    layer=_LAYER.value,
    steps=_STEPS.value,
  )
  if named:
    count = _REGIONS.value
    clips = frames[None].repeat(count, 0)
    shown.regions.extend(explain.name_regions(model, *named, clips, [text] * count))
  if note:
    shown.notes.append(note)
    print(note)
  path = pathlib.Path(_OUTPUT.value)
  files.write_text(path, explain.render(shown))
  return path


def _load_prompter(model):
  """The prompter of a pre-training with its entities, if it is there, and why not."""
  from alpro_jax.evaluation import trained

  if model.config.task != 'pretrain' or not model.config.loss.pem > 0:
    return None, ''
  with model.config.ignore_type(), model.config.unlocked():
    prompter = model.config.prompter
    prompter.checkpoint = _PROMPTER.value or prompter.checkpoint
    prompter.entities = _ENTITIES.value or prompter.entities
  try:
    return trained.load_teacher(model), ''
  except (OSError, ValueError) as error:
    if _PROMPTER.value or _ENTITIES.value:
      raise
    return None, f'Regions are not named: {error}'


def _cut(video, frames):
  """One clip of the video, from --start on."""
  from alpro_jax.data.cut import Cutting, decode

  start, length = _START.value, _SECONDS.value
  cutting = Cutting(frames=frames, spans=(length,), stride=length, fps=_FPS.value, begin=start)
  (cut,) = decode([(video, (start,))], cutting)
  if not cut.clips:
    reason = f'{cut.reason} {cut.detail}'.strip() or (f'it ends before --start={start}')
    raise ValueError(f'{video} gives no clip: {reason}.')
  return cut.clips[0]


if __name__ == '__main__':
  command.run(main, words=True)
