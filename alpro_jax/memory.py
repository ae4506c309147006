"""Memory of a training step, by formula: known before anything is compiled.

On each device a step holds

  state        12 bytes for each parameter (itself and Adam's two moments in float32),
               4 for each gradient, and 4 for each parameter of a frozen prompter
  activations  for each clip of a micro-batch what the backward pass needs: VIDEO or TEXT
               values for each token, number of its width, and layer, and three times the
               logits of MLM; with remat=blocks one value each, and all in one layer

and on a CPU the program, its input and its compiler beside it. XLA for CPUs computes in
float32 whatever the dtype, and undoes remat. How near that is to what compilers plan:
docs/your-videos.md and tests/test_memory.py.
"""

from typing import Any, NamedTuple

GIB = 2**30
# Values that a layer keeps, in float32: fitted to compiled programs. A layer of the video
# encoder attends over time, then over space.
VIDEO, TEXT = 44, 23
# In bfloat16 some are not kept beside their copies in float32.
_BFLOAT16 = 0.8
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
  frozen = count if task == 'pretrain' and config.loss.pem else 0
  rows = -(-config.data.batch_size // (config.optimizer.accumulation * devices))
  return Need(
    (16 * count + 4 * frozen) // max(config.mesh.fsdp, 1),
    int(rows * _of_clip(config, kind, vocab_size)),
    HOST if kind == 'cpu' else 0,
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


def _of_clip(config, kind, vocab_size):
  """Bytes that one pair of a clip and a text keeps."""
  model, task, loss = config.model, config.task, config.loss
  places = (config.data.image_size // model.video.patch_size) ** 2
  length = config.data.max_text_tokens
  if task == 'pretrain':
    masked, pairs = int(loss.mlm > 0), 3 * (loss.vtm > 0) + (loss.mlm > 0) + (loss.pem > 0)
  else:
    # VTC alone; VTC and VTM; each question with its clip.
    masked, pairs = 0, {'prompter': 0, 'retrieval': 3 * (loss.vtm > 0)}.get(task, 1)
  # Tokens x width, layers, and values that each keeps.
  layers = [((1 + config.data.frames * places) * model.video.width, model.video.depth, VIDEO)]
  if text := model.get('text'):
    fused = pairs * (length + 1 + places) * text.width
    layers.append(((1 + masked) * length * text.width, text.fusion_layer, TEXT))
    layers.append((fused, text.depth - text.fusion_layer, TEXT))
  if tower := model.get('text_tower'):
    layers.append((tower.max_positions * tower.width, tower.depth, TEXT))
  share = 1.0 if model.dtype == 'float32' else _BFLOAT16
  values = share * sum(size * depth * kept for size, depth, kept in layers)
  if kind != 'cpu' and model.remat == 'blocks':
    values = sum(size * depth for size, depth, _ in layers)
    values += share * max(size * kept for size, _, kept in layers)
  elif kind != 'cpu' and model.remat == 'dots':
    values *= _DOTS
  size = 4 if kind == 'cpu' or model.dtype == 'float32' else 2
  return size * values + 3 * 4 * masked * length * vocab_size
