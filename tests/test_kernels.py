"""Kernels of a GPU's program: their bytes, products and how often they run."""

import pytest

from benchmarks import hlo, kernels
from benchmarks.chips import CHIPS, MULTIPROCESSORS, gpu_target, of_kind

# As XLA's GPU compiler writes it, but for what is left out.
PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_slice (p.0: bf16[8,100], p.1: s32[]) -> bf16[8,10] {
  %p.0 = bf16[8,100]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %b.0 = bf16[8,100]{1,0} bitcast(%p.0)
  ROOT %s.0 = bf16[8,10]{1,0} dynamic-slice(%b.0, %p.1, %p.1), dynamic_slice_sizes={8,10}
}

%fused_update (q.0: f32[100,8], q.1: f32[1,8], q.2: s32[]) -> f32[100,8] {
  %q.0 = f32[100,8]{1,0} parameter(0)
  %q.1 = f32[1,8]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  ROOT %u.0 = f32[100,8]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %q.2)
}

%body (c: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %c = (s32[], f32[100,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %t = f32[100,8]{1,0} get-tuple-element(%c), index=1
  %row = f32[1,8]{1,0} copy(%t)
  %set = f32[100,8]{1,0} fusion(%t, %row, %i), kind=kLoop, calls=%fused_update
  ROOT %r = (s32[], f32[100,8]{1,0}) tuple(%i, %set)
}

%condition (c.1: (s32[], f32[100,8])) -> pred[] {
  %c.1 = (s32[], f32[100,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: bf16[8,100], w: bf16[100,64], i: s32[]) -> bf16[8,64] {
  %x = bf16[8,100]{1,0} parameter(0)
  %w = bf16[100,64]{1,0} parameter(1)
  %i.0 = s32[] parameter(2)
  %cut = bf16[8,10]{1,0} fusion(%x, %i.0), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(step)/block3/slice"}
  %cut.1 = bf16[8,10]{1,0} fusion(%x, %i.0), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(step)/block11/slice"}
  %gemm = (bf16[8,64]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/dot"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %q = bf16[2,6,3,8]{3,2,1,0} parameter(3)
  %fmha = (bf16[2,3,6,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax"
  %start = (s32[], f32[100,8]{1,0}) parameter(4)
  %loop = (s32[], f32[100,8]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = bf16[8,64]{1,0} get-tuple-element(%gemm), index=0
}
"""  # noqa: E501


@pytest.fixture(scope='module')
def found():
  return kernels.parse(PROGRAM)


def one_of(found, kind, source=''):
  (one,) = (k for k in found if k.kind == kind and source in k.source)
  return one


def test_names_for_what_is_there_are_no_kernels(found):
  assert [one.kind for one in found] == ['loop', 'loop', 'cublas', 'cudnn', 'copy', 'loop']


def test_a_slice_is_read_in_part(found):
  cut = one_of(found, 'loop', 'block3')
  assert cut.moved_bytes == 8 * 10 * 2 + 4 + 8 * 10 * 2
  assert cut.flops == 0 and cut.result == 'bf16[8,10]'


def test_a_row_is_written_in_place_as_often_as_the_loop_turns(found):
  update = found[-1]
  assert update.runs == 5
  # The row in, where it goes, and the row out.
  assert update.moved_bytes == 8 * 4 + 4 + 8 * 4


def test_products_of_the_libraries(found):
  gemm, fmha = one_of(found, 'cublas'), one_of(found, 'cudnn')
  assert gemm.flops == 2 * 8 * 64 * 100
  assert gemm.moved_bytes == 2 * (8 * 100 + 100 * 64 + 8 * 64)  # No workspace.
  assert fmha.flops == 2 * 2 * (2 * 6 * 3 * 8) * 6
  assert fmha.moved_bytes == 4 * 2 * (2 * 6 * 3 * 8)


def test_a_kernel_takes_as_long_as_its_bytes_or_its_products():
  chip = CHIPS['h200']
  moving = kernels.Kernel('a', 'loop', '', '', 4800, 0, runs=3)
  assert moving.seconds(chip) == pytest.approx(3e-9)
  product = kernels.Kernel('b', 'cublas', '', '', 4800, 989 * 10**6, runs=1)
  assert product.seconds(chip) == pytest.approx(1e-6)


def test_layers_are_added_up(found):
  total = next(
    one for one in kernels.totals(found, CHIPS['h200']) if one.source == 'jit(step)/block*/slice'
  )
  assert total.runs == 2
  assert total.moved_bytes == 2 * (8 * 10 * 2 + 4 + 8 * 10 * 2)


def test_a_loop_of_unknown_length_is_refused():
  with pytest.raises(ValueError, match='loop loop turns is not known'):
    kernels.parse(PROGRAM.replace('known_trip_count', 'other'))


def test_shapes_and_sizes_of_tuples():
  kind = '(f32[2,3]{1,0}, pred[], s4[5]{0})'
  assert hlo.shapes(kind) == [('f32', (2, 3)), ('pred', ()), ('s4', (5,))]
  assert hlo.size_bytes(kind) == 24 + 1 + 3


def test_a_gpu_is_known_by_what_it_calls_itself():
  assert of_kind('NVIDIA H200') == CHIPS['h200']
  assert of_kind('NVIDIA A100-SXM4-80GB') == CHIPS['a100']
  assert of_kind('TPU v4') is of_kind('NVIDIA T4') is None
  assert set(MULTIPROCESSORS) <= set(CHIPS)
  assert 'device_description_str: "NVIDIA H100"' in gpu_target('h100')
