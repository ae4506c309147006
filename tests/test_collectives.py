"""What the parser counts, and what the real step sends."""

import jax
import jax.numpy as jnp
import pytest

from alpro_jax import contrastive, sharding
from benchmarks import collectives, dry_run
from tests import small_task

PROGRAM = """
HloModule jit_f, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%body (carry: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %carry = (s32[], bf16[4,8]{1,0:T(4,128)(2,1)}) parameter(0)
  %block = bf16[4,8]{1,0:T(4,128)(2,1)} get-tuple-element(%carry), index=1
  %step = s32[] get-tuple-element(%carry), index=0
  %hop = bf16[4,8]{1,0} collective-permute(%block), channel_id=2, \
source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(f)/ring"}
  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%step, %hop)
}

%condition (carry.1: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[] constant(12)
  %carry.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%carry.1), index=0
  ROOT %go = pred[] compare(%turn, %limit), direction=LT
}

%wrapped (in: f32[16]) -> f32[128] {
  %in = f32[16]{0} parameter(0)
  ROOT %gather = f32[128]{0} all-gather(%in), channel_id=3, \
replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (a: f32[16], b: pred[3], c: bf16[4,8]) -> f32[] {
  %a = f32[16]{0} parameter(0)
  %b = pred[3]{0} parameter(1)
  %c = bf16[4,8]{1,0} parameter(2)
  %start = ((f32[16]{0}), f32[128]{0}, u32[]) async-start(%a), calls=%wrapped
  %done = f32[128]{0} async-done(%start), calls=%wrapped
  %two = (f32[16]{0}, pred[3]{0}) all-reduce(%a, %b), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %begin = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) \
collective-permute-start(%c), channel_id=4, source_target_pairs={{0,1}}
  %end = bf16[4,8]{1,0} collective-permute-done(%begin)
  %part = f32[8]{0} reduce-scatter(%a), channel_id=5, \
replica_groups=mesh['x'=4,'y'=2] {'y'}, dimensions={0}, to_apply=%add
  %zero = s32[] constant(0)
  %carry.2 = (s32[], bf16[4,8]{1,0}) tuple(%zero, %end)
  %loop = (s32[], bf16[4,8]{1,0}) while(%carry.2), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %swap = f32[16]{0} all-to-all(%a), channel_id=6, replica_groups={}
  ROOT %out = f32[] constant(0)
}
"""


def test_every_kind_is_counted_with_its_group_and_loop():
  found = {(one.kind, one.operand_bytes): one for one in collectives.parse(PROGRAM)}
  assert len(found) == 6 - 1  # Two permutations send equally much.
  gather = found['all-gather', 64]
  assert (gather.group, gather.runs, gather.sent_bytes) == (8, 1, 64 * 7)
  reduce = found['all-reduce', 64 + 3]
  assert (reduce.group, reduce.shapes) == (4, 'f32[16] pred[3]')
  assert reduce.sent_bytes == round(2 * 67 * 3 / 4)
  scatter = found['reduce-scatter', 64]
  assert (scatter.group, scatter.sent_bytes) == (2, 32)
  assert found['all-to-all', 64].sent_bytes == 56


@pytest.mark.parametrize(
  'groups, size',
  [
    ("mesh['x'=1,'y'=2,'z'=4], device_ids=([2,4]T(1,0)) {'y','z'}", 8),
    ("mesh['x'=8] {'x':(2)4}", 4),
    ('[4,2]<=[2,4]T(1,0)', 2),
    ('{}', 8),
  ],
)
def test_ways_to_write_a_group(groups, size):
  text = PROGRAM.replace('[1,8]<=[8]', groups)
  (one,) = (c for c in collectives.parse(text) if c.kind == 'all-gather')
  assert one.group == size


@pytest.mark.parametrize('note', ['known_trip_count', 'none, as for TPUs'])
def test_totals_turn_loops(note):
  text = PROGRAM.replace('known_trip_count', note)
  ring = collectives.totals(collectives.parse(text))['collective-permute']
  assert (ring.instructions, ring.runs) == (2, 13)
  assert ring.sent_bytes == ring.operand_bytes == 13 * 4 * 8 * 2


def test_transfers_between_slices_are_told_apart():
  transfer = (
    '  %token = token[] after-all()\n'
    '  %out.1 = (f32[16]{0}, u32[], token[]) send(%a, %token), channel_id=7, frontend_attributes='
    '{_xla_megascale_target="{1,2,3,4}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}\n'
  )
  text = PROGRAM.replace('  %zero =', f'{transfer}  %zero =')
  (one,) = (c for c in collectives.parse(text) if c.between_slices)
  assert (one.kind, one.group, one.operand_bytes) == ('all-reduce', 4, 64)
  assert one.sent_bytes == 2 * 64 * 3 // 4
  with pytest.raises(ValueError, match='of type OTHER between slices'):
    collectives.parse(text.replace('"ALL_REDUCE"', '"OTHER"'))


def test_what_is_not_understood_is_refused():
  unknown = PROGRAM.replace('known_trip_count', '').replace('=LT', '=NE')
  with pytest.raises(ValueError, match='loop loop turns is not known'):
    collectives.parse(unknown)
  with pytest.raises(ValueError, match='no known replica_groups'):
    collectives.parse(PROGRAM.replace('=[1,8]<=[8]', '=somehow'))
  with pytest.raises(ValueError, match='no ENTRY'):
    collectives.parse('f32[8]')


def test_no_form_of_the_contrast_sends_more_than_features_and_a_few_numbers():
  """Of 64 pairs on 8 devices, with their gradients."""
  b, embed, mesh = 64, 32, sharding.make_mesh()
  place = sharding.batch_sharding(mesh)

  def shaped(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  side, ids = shaped(jnp.float32, b, embed), shaped(jnp.int32, b, 2)
  number = jax.ShapeDtypeStruct((), jnp.float32)

  def sent(loss, *numbers, **options):
    run = jax.jit(
      jax.value_and_grad(
        lambda pair, ids, *numbers: loss(pair, *numbers, ids, chunk=8, mesh=mesh, **options)[0],
        argnums=(0, *range(2, 2 + len(numbers))),
      )
    )
    text = run.lower(contrastive.Features(side, side), ids, *numbers).compile().as_text()
    return sum(x.sent_bytes for x in collectives.totals(collectives.parse(text)).values())

  softmax = sent(contrastive.vtc, number)
  a_number, shared = 4 * b * 7 // 8, 4 * b * 7 // 8 * (2 * embed + 2)
  # Logarithms of two directions, and sums.
  assert shared < softmax <= shared + 2 * a_number + 100
  assert sent(contrastive.vtc, number, positives=(0, 1)) <= softmax + a_number
  for positives in ((), (0, 1)):
    assert sent(contrastive.sigmoid_vtc, number, number, positives=positives) <= softmax


@pytest.mark.slow
def test_the_step_sends_gradients_once_embeddings_and_a_ring(tmp_path):
  config = small_task.small_config(tmp_path)
  mesh = sharding.make_mesh()
  program = dry_run.program(config, mesh)
  sent = collectives.totals(
    collectives.parse(
      program.step.lower(program.state, program.frozen, program.batch).compile().as_text()
    )
  )
  b, embed = config.data.batch_size, config.model.embed_size
  gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
  # Features and similarities of the batch, identities, sums for the log.
  batch = 4 * (2 * b * embed + b * b + 16 * b)
  reduced = sent['all-reduce'].operand_bytes
  # Parameters that are only ever added, as the class token and its position,
  # share one gradient.
  assert 0.99 * gradients <= reduced <= gradients + batch
  others = sum(sent[kind].sent_bytes for kind in ('all-gather', 'all-to-all') if kind in sent)
  assert others <= batch

  length, width = config.data.max_text_tokens, config.model.text.width
  tokens = 4 * (length + 1 + 4) * width  # Of one pair, with four patches.
  once = b // mesh.size * (2 * tokens + length)  # There and back, and a mask.
  hops = mesh.size - 1
  assert sent['collective-permute'].operand_bytes == hops * once
  assert 'reduce-scatter' not in sent
