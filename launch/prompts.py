"""Chooses the prompter's templates, or learns its prompts, by what captions name.

  python launch/prompts.py choose --prompter=runs/prompter --data=sets/clips \\
    --entities=entities.txt --split=val
  python launch/prompts.py learn --prompter=runs/prompter --data=sets/clips \\
    --entities=entities.txt --output=prompts.npz

choose tries templates on clips whose captions name an entity, adds them to an ensemble as
long as more clips are named right, and prints the option to pre-train with. learn trains
vectors in the place of a template's words (CoOp) and writes prompts that pre-training takes
as --config.prompter.prompts. Use a split that is not tested on.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

from absl import flags

_PROMPTER = flags.DEFINE_string('prompter', None, 'Its workdir or checkpoint.', required=True)
_DATA = flags.DEFINE_string('data', None, 'Prepared set.', required=True)
_SPLIT = flags.DEFINE_string('split', 'train', 'Split of the clips; a part: train[-1000:].')
_ENTITIES = flags.DEFINE_string('entities', None, 'One a line.', required=True)
_NUMBER = flags.DEFINE_integer('num_entities', 0, 'How many of them; 0 is all.')
_TEMPLATES = flags.DEFINE_string(
  'templates', '', "choose: a file with a template a line; by default the paper's and short ones."
)
_MOST = flags.DEFINE_integer('most', 12, 'choose: templates of the ensemble.', lower_bound=1)
_START = flags.DEFINE_string('start', 'a video of a {entity}', 'learn: the template to begin as.')
_STEPS = flags.DEFINE_integer('steps', 300, 'learn: of Adam.', lower_bound=1)
_RATE = flags.DEFINE_float(
  'rate', 0.05, 'learn: its step, as a share of the spread of word vectors.', lower_bound=0
)
_OUTPUT = flags.DEFINE_string('output', '', 'learn: file to write, ending in .npz.')

_SHORT = ('{entity}', 'a {entity}', 'the {entity}', 'there is a {entity}')


def main(*words):
  if words not in (('choose',), ('learn',)):
    raise ValueError('expected one word, choose or learn, and then flags.')
  if words == ('learn',) and not _OUTPUT.value.endswith('.npz'):
    raise ValueError(f'--output={_OUTPUT.value!r} must be a file that ends in .npz.')
  command.start()
  from alpro_jax.data import dataset, entities
  from alpro_jax.evaluation import prompts, trained
  from alpro_jax.train import checkpoints, identity

  names = entities.read_entities(_ENTITIES.value, _NUMBER.value)
  found = checkpoints.find(_PROMPTER.value)
  model = trained.load(found)
  prepared = dataset.open_dataset(_DATA.value, _SPLIT.value)
  clips = prompts.named_clips(model, prepared, names)
  print(f'{len(clips.feature)} of {len(prepared)} clips have captions that name an entity.')
  if words == ('choose',):
    _choose(model, clips, names)
    return
  before = prompts.encode_templates(model, [_START.value], names)[0]
  feature = prompts.learn(
    model, clips, names, start=_START.value, steps=_STEPS.value, rate=_RATE.value
  )
  for name, rows in (('template', before), ('learned', feature)):
    print(f'{name:<10}{_said(prompts.agreement(clips, rows))}')
  print('Of the clips that were learned from, too; another split tells what they are worth.')
  from alpro_jax.models import prompter

  digest = identity.of_checkpoint(found.folder)['digest']
  prompter.write_prompts(_OUTPUT.value, feature, names, digest)
  print(f'Written: {_OUTPUT.value}. Pre-train with --config.prompter.prompts={_OUTPUT.value}')


def _choose(model, clips, names):
  from alpro_jax.data import checksum
  from alpro_jax.evaluation import prompts
  from alpro_jax.models import prompter

  templates = [*prompter.VIDEO_TEMPLATES, *_SHORT]
  if _TEMPLATES.value:
    templates = [line for line in checksum.read_lines(_TEMPLATES.value) if line.strip()]
  rows = prompts.encode_templates(model, templates, names)
  for template, row in zip(templates, rows, strict=True):
    print(f'{_said(prompts.agreement(clips, row))}  {template}')
  chosen = prompts.choose_templates(clips, rows, _MOST.value)
  together = prompter.ensemble(rows[chosen], renormalize=True)
  print(f'{_said(prompts.agreement(clips, together))}  of {len(chosen)} together, the best here:')
  print(f'--config.prompter.video_templates="{tuple(templates[i] for i in chosen)}"')


def _said(agreement):
  value, low, high = agreement
  return f'{value:5.1f} % named right ({low:.1f} to {high:.1f})'


if __name__ == '__main__':
  command.run(main, words=True)
