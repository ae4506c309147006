"""Memory of a training step, by formula: known before anything is compiled.

On each device a step holds

  state        12 bytes for each parameter that is trained (itself and Adam's two moments in
               float32), 4 for its gradient, and 4 for its average, if there is one; 4 for
               one that is not, the prompter's too; 8 for one that LoRA adapts (merged, and
               the gradient of that)
  activations  for each clip of a micro-batch what the backward pass needs: VIDEO or TEXT
               values for each token, number of its width, and layer, and three times the
               logits of MLM; with remat=blocks one value each, and all in one layer. Layers
               below all that is trained keep nothing, and a video encoder does not run
               where its features are read from disk

and on a CPU the program, its input and its compiler beside it. XLA for CPUs computes in
float32 whatever the dtype, and undoes remat. How near that is to what compilers plan:
docs/your-videos.md and tests/test_memory.py.
"""

import functools
import re
from typing import Any, NamedTuple

GIB = 2**30
# Values that a layer keeps, in float32: fitted to compiled programs. A layer of the video
# encoder attends over time, then over space.
VIDEO, TEXT = 44, 23
# In bfloat16 some are not kept beside their copies in float32.
_BFLOAT16 = 0.8
_FORWARD = 0.5  # Share of them that a layer needs while no gradient passes it.
_DOTS = 0.5  # Share of them that remat=dots keeps.
HOST = 2 * GIB  # Python, libraries, input and compiler.


class Need(NamedTuple):
  """Bytes on each device, and of the host where the devices are its cores."""

  state: int
  activations: int
  host: int = 0

  @property
  def total(self) -> int:
    return sum(self)

  def __str__(self):
    parts = [
      f'{_gib(self.state)} of parameters, moments and gradients',
      f'{_gib(self.activations)} of activations',
      f'{_gib(self.host)} of the program' if self.host else '',
    ]
    return f'{_gib(self.total)} GiB ({", ".join(filter(None, parts))})'


def _gib(size):
  return f'{size / GIB:.{1 if size >= GIB else 2}f}'


def of_step(config: Any, *, kind: str = 'cpu', devices: int = 1, vocab_size: int = 0) -> Need:
  """Returns what a step of a config needs.

  Args:
    config: see configs/common.py.
    kind: of the devices: 'cpu', 'gpu' or 'tpu'.
    devices: over which batch and, by `mesh.fsdp`, state are sharded.
    vocab_size: of the tokenizer; 0 is that of the config.
  """
  task, model = config.task, config.model
  vocab_size = vocab_size or (model.get('text') or model.text_tower).vocab_size
  count = parameters(model, vocab_size)
  trained, held, adapted, names = count, 0, 0, None
  if config.optimizer.freeze or config.optimizer.lora.rank:
    trained, held, adapted, names = _parts(config, vocab_size)
  prompter = count if task == 'pretrain' and config.loss.pem else 0
  state = (16 + 4 * (config.train.ema_decay > 0)) * trained + 4 * (held + prompter) + 8 * adapted
  rows = -(-config.data.batch_size // (config.optimizer.accumulation * devices))
  return Need(
    state // max(config.mesh.fsdp, 1),
    int(rows * _of_clip(config, kind, vocab_size, names)),
    HOST if kind == 'cpu' else 0,
  )


def _parts(config, vocab_size) -> tuple[int, int, int, tuple[str, ...]]:
  """Returns how many parameters are trained, held and adapted; and names of the first."""
  # Here, not at the top: configs that train everything need no jax.
  from alpro_jax.tasks.shared import model_config
  from alpro_jax.train.trainable import Trainable

  loss = config.loss
  heads: dict[str, Any] = {
    'pretrain': {'entities': int(loss.pem > 0)},
    'retrieval': {'match': loss.vtm > 0, 'mlm': False},
    'question_answering': {'embed_size': 0, 'match': False, 'mlm': False, 'text_tower': None}
    | {'answers': 1},
  }.get(config.task, {})
  values = model_config(config.model, vocab_size, **heads)
  return _split(values.plain(), Trainable.from_config(config.optimizer))


@functools.lru_cache(maxsize=8)
def _split(model, trainable):
  import jax
  from flax import linen as nn

  from alpro_jax.models.alpro import Alpro
  from alpro_jax.tasks.shared import init_model
  from alpro_jax.train import trees

  def split(key):
    return trainable.split(init_model(Alpro(model), key), key)

  parts = nn.unbox(jax.eval_shape(split, jax.random.key(0)))
  trained, held = ({name: x.size for name, x in trees.by_name(part).items()} for part in parts)
  adapted = {name.rpartition('/')[0] for name in trained} & held.keys()
  return (
    sum(trained.values()),
    sum(held.values()),
    sum(held[name] for name in adapted),
    tuple(trained),
  )


def parameters(model: Any, vocab_size: int) -> int:
  """Returns about how many parameters a model has, without biases and small heads."""
  video, total = model.video, 3 * model.video.patch_size**2 * model.video.width
  # Of a layer: attention 4 W^2, MLP 2 W M; divided attention has another, and a product.
  attentions = 9 if video.attention == 'divided' else 4
  total += video.depth * (attentions * video.width**2 + 2 * video.width * video.mlp_size)
  for text in _texts(model):
    total += text.depth * (4 * text.width**2 + 2 * text.width * text.mlp_size)
    # The tokenizer is that of the first.
    words, vocab_size = vocab_size or text.vocab_size, 0
    total += (words + text.max_positions) * text.width
  return total


def _texts(model):
  """The encoders of texts of config.model: `text`, `text_tower` or both."""
  return [model[name] for name in ('text', 'text_tower') if model.get(name)]


def _of_clip(config, kind, vocab_size, names=None):
  """Bytes that one pair of a clip and a text keeps; `names` are trained, None is all."""
  model, task, loss = config.model, config.task, config.loss
  places = (config.data.image_size // model.video.patch_size) ** 2
  length = config.data.max_text_tokens
  if task == 'pretrain':
    masked, pairs = int(loss.mlm > 0), 3 * (loss.vtm > 0) + (loss.mlm > 0) + (loss.pem > 0)
  else:
    # VTC alone; VTC and VTM; each question with its clip.
    masked, pairs = 0, {'prompter': 0, 'retrieval': 3 * (loss.vtm > 0)}.get(task, 1)
  # Tokens x width, layers, those that a gradient passes, and values that each keeps.
  layers = []

  def add(size, part, first, last, kept, below=()):
    layers.append((size, last - first, last - _lowest(names, part, first, last, below), kept))

  if not config.data.features:
    size = (1 + config.data.frames * places) * model.video.width
    add(size, 'video_encoder', 0, model.video.depth, VIDEO)
  if text := model.get('text'):
    fused, read = pairs * (length + 1 + places) * text.width, ('text_embedding',)
    add((1 + masked) * length * text.width, 'text_encoder', 0, text.fusion_layer, TEXT, read)
    below = ('video_encoder', 'fusion_projection', 'text_encoder', *read)
    add(fused, 'fusion_encoder', text.fusion_layer, text.depth, TEXT, below)
  if (tower := model.get('text_tower')) and task != 'question_answering':
    add(tower.max_positions * tower.width, 'text_tower', 0, tower.depth, TEXT)
  share = 1.0 if model.dtype == 'float32' else _BFLOAT16
  values = share * sum(size * passed * kept for size, _, passed, kept in layers)
  if kind != 'cpu' and model.remat == 'blocks':
    values = sum(size * passed for size, _, passed, _ in layers)
    values += share * max((size * kept for size, _, passed, kept in layers if passed), default=0)
  elif kind != 'cpu' and model.remat == 'dots':
    values *= _DOTS
  # While nothing is kept, there is one layer at a time.
  alone = (size * kept for size, depth, passed, kept in layers if passed < depth)
  values = max(values, share * _FORWARD * max(alone, default=0))
  size = 4 if kind == 'cpu' or model.dtype == 'float32' else 2
  return size * values + 3 * 4 * masked * length * vocab_size


def _lowest(names, part, first, last, below):
  """Returns the lowest layer of a part that a gradient passes; `last` if none does."""
  if names is None or any(name.startswith(tuple(f'{x}/' for x in below)) for name in names):
    return first
  own = [name for name in names if name.startswith(f'{part}/')]
  numbers = [re.match(rf'{part}/(?:block|layer)(\d+)/', name) for name in own]
  above = rf'{part}/(norm|pool|projection)/.*'
  if any(not n and not re.match(above, name) for n, name in zip(numbers, own, strict=True)):
    return first
  return min((int(n[1]) for n in numbers if n), default=last)
