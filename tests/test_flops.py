"""The formulas against counts of the original's operations.

See docs/specification.md, Cost.
"""

import dataclasses
import functools

import pytest

from alpro_jax import flops
from alpro_jax.models.alpro import AlproConfig
from benchmarks import flops as step_flops
from configs import models

BASE = AlproConfig.from_dict({**models.base().to_dict(), 'entities': 1000})


def test_parts_of_the_base_model():
  assert flops.video_forward(BASE, 4, 224) / 1e9 == pytest.approx(195.77, rel=1e-4)
  assert 2 * flops.text_forward(BASE, 30) / 1e9 == pytest.approx(5.13, rel=2e-3)
  assert flops.fusion_forward(BASE, 30, 224) / 1e9 == pytest.approx(20.23, rel=1e-3)
  assert step_flops.mlm_head_forward(BASE, 30) / 1e9 == pytest.approx(1.44, rel=5e-3)


def test_step_of_the_base_model():
  count = functools.partial(
    step_flops.train_step, BASE, frames=4, image_size=224, length=30, vtm=True, mlm=True, pem=True
  )
  assert count(as_original=True) / 1e9 == pytest.approx(1044.65, rel=2e-3)
  # Of the last layer two pairs are read at one token and one at its text.
  tokens, spared = 227, 2 * (227 - 1) + (227 - 30)
  of_token = 2 * 768 * (2 * 768 + 2 * 3072) + 4 * tokens * 768
  assert count(as_original=True) - count() == 3 * spared * of_token


def test_retrieval_is_nearly_all_fusion():
  shape = dict(texts=1000, videos=1000, frames=8, image_size=224, length=30)
  every = flops.retrieval(BASE, **shape, pairs=10**6)
  near = flops.retrieval(BASE, **shape, pairs=0)
  fusion = flops.fusion_forward(BASE, 30, 224, query_tokens=1)
  assert every - near == pytest.approx(10**6 * fusion, rel=1e-6)
  assert near == pytest.approx(1000 * flops.video_forward(BASE, 8, 224), rel=0.01)


def test_a_loss_of_weight_zero_costs_nothing():
  shape = dict(frames=4, image_size=224, length=30)
  vtc = step_flops.train_step(BASE, **shape, vtm=False, mlm=False, pem=False)
  both = flops.video_forward(BASE, 4, 224) + flops.text_forward(BASE, 30)
  assert vtc == 3 * both


def test_one_frame_costs_the_same_jointly_and_by_frame():
  def cost(attention):
    video = dataclasses.replace(BASE.video, attention=attention)
    config = dataclasses.replace(BASE, video=video)
    return flops.video_forward(config, 1, 224)

  assert cost('joint') == cost('space_only')
