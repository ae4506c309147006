"""The pre-training step in PyTorch, to be timed beside ours."""

import time

import jax
import numpy as np
import torch
import torch.nn.functional as F
from flax import traverse_util
from torch import nn

from alpro_jax import masking, sharding
from alpro_jax.models.alpro import AlproConfig
from alpro_jax.weights import tables
from benchmarks import dry_run, timing
from benchmarks.torch_model import Batch, Losses, Prompter, Student


class Step:
  """Losses, gradients, clipping, AdamW: one call is one update."""

  def __init__(self, config, student, prompter, *, compiled):
    """`config`: see configs/common.py; `compiled`: use torch.compile."""
    options = config.optimizer
    self._student = student
    self._bounds = tuple(config.model.temperature_range)
    self._clip_norm = options.clip_norm
    self._prompter_call, self._student_call = prompter, student
    if compiled:
      self._prompter_call = torch.compile(prompter)
      self._student_call = torch.compile(student)
    matrices = {
      module.weight for module in student.modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    others = [x for x in student.parameters() if x not in matrices]
    self._optimizer = torch.optim.AdamW(
      [{'params': list(matrices)}, {'params': others, 'weight_decay': 0.0}],
      lr=options.learning_rate,
      betas=(options.b1, options.b2),
      eps=options.eps,
      weight_decay=options.weight_decay,
      fused=True,
    )

  def __call__(self, batch: Batch) -> Losses:
    with torch.no_grad():
      self._student.temp.clamp_(*self._bounds)
    target, keep = self._prompter_call(batch.video, batch.region, batch.still)
    losses = self._student_call(batch, target, keep)
    self._optimizer.zero_grad()
    sum(losses).backward()
    nn.utils.clip_grad_norm_(self._student.parameters(), self._clip_norm)
    self._optimizer.step()
    return losses


def draw(task, batch, key) -> Batch:
  """Draws masked words and regions as the loss of tasks/pretrain.py does.

  Args:
    task: a Pretrain.
    batch: VideoTextBatch of numpy.
    key: that the loss would get.
  """
  _, words, _, _, region = jax.random.split(key, 5)
  options, model = task.options, task.model.config
  masked_ids, labels = masking.mask_tokens(
    words,
    batch.text_ids,
    batch.text_mask,
    special=task.special,
    vocab_size=model.text.vocab_size,
    probability=options.mask_probability,
  )
  region = masking.sample_regions(
    region,
    len(batch.video),
    batch.video.shape[2] // model.video.patch_size,
    area=options.region_area,
    rule=options.region_rule,
  )
  ids, masked_ids, labels = (np.asarray(x, np.int64) for x in (batch.text_ids, masked_ids, labels))
  return Batch(
    *(
      torch.from_numpy(np.array(x))
      for x in (batch.video, ids, batch.text_mask, masked_ids, labels, region, batch.still)
    )
  )


def load(module, params, config: AlproConfig) -> None:
  """Copies parameters of ours; those that the module lacks are left out."""
  ours = traverse_util.flatten_dict(params, sep='/')
  wanted = module.state_dict()
  module.load_state_dict(
    {
      row.original: torch.from_numpy(
        np.array(row.layout.to_original(*(np.asarray(ours[path]) for path in row.ours)))
      )
      for row in tables.rename_table(config)
      if row.original in wanted
    }
  )


def build(config, task):
  """Returns a Student and a Prompter of random weights."""
  options, sizes = config.prompter, task.model.config
  bank = F.normalize(torch.randn(2, sizes.entities, sizes.embed_size), dim=-1)
  return Student(sizes).train(), Prompter(
    sizes, bank, patch_size=sizes.video.patch_size, threshold=options.ignore_threshold
  )


def measure(config, *, steps, warmup, compiled):
  """Times the step on a GPU if PyTorch sees one; returns the figures by name.

  With config.model.dtype='bfloat16' it computes so by autocast, the parameters
  float32. In float32 a GPU may multiply in TF32, as JAX does by default.

  Args:
    config: see configs/common.py.
    steps: that are timed.
    warmup: steps before the clock starts, in which torch.compile compiles.
    compiled: by torch.compile, or eager.
  """
  started = time.perf_counter()
  on_gpu = torch.cuda.is_available()
  device = torch.device('cuda' if on_gpu else 'cpu')
  task = dry_run.task(config, sharding.make_mesh())
  torch.manual_seed(config.seed)
  torch.set_float32_matmul_precision('high')
  student, prompter = (module.to(device) for module in build(config, task))
  batch = draw(task, dry_run.noise(config), jax.random.key(0))
  batch = Batch(*(x.to(device) for x in batch))
  step = Step(config, student, prompter, compiled=compiled)
  half = config.model.dtype == 'bfloat16'

  def run():
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
      losses = step(batch)
    done = torch.cuda.Event() if on_gpu else None
    if done:
      done.record()
    return losses, done

  def wait(queued):
    # Only for its own step: a loss that is read waits for all that is queued.
    if queued[1]:
      queued[1].synchronize()

  begin = time.perf_counter()
  for _ in range(warmup):
    wait(run())
  warmup_s = time.perf_counter() - begin
  spent = timing.time_steps(run, wait, steps)
  losses, _ = run()
  return {
    'device': torch.cuda.get_device_name() if on_gpu else 'cpu',
    'torch': torch.__version__,
    'threads': torch.get_num_threads(),
    'dtype': config.model.dtype,
    'batch_size': config.data.batch_size,
    'loss': sum(losses).item(),
    'setup_s': begin - started,
    'warmup_s': warmup_s,
    **spent,
    'clips_per_s': config.data.batch_size / spent['step_s'],
    'peak_in_use_gib': torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    'parameters': sum(x.numel() for x in student.parameters()),
  }
