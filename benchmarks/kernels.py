"""What each kernel of a program compiled for a GPU moves and multiplies.

    for one in kernels.parse(compiled.as_text()): ...

A kernel takes at least as long as its bytes take between memory and chip, and
as its products take on the matrix units: the roofline (Williams et al., 2009).
The sum over all kernels is a bound that no run of this program beats, if it
runs them one after the other; what a kernel does beside products (random bits,
exponentials) and how it reaches memory is not in it. It tells where a program
spends its bytes, and which of two is leaner, not how long either takes.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

from benchmarks import hlo
from benchmarks.chips import Chip

# Names for what is there already, not kernels.
_FREE = (
  'parameter',
  'constant',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'partition-id',
  'replica-id',
  'after-all',
  'optimization-barrier',
)
_CONTAINERS = ('while', 'call', 'conditional')
_READ_IN_PART = ('slice', 'dynamic-slice', 'gather')


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One instruction that runs on the device.

  Attributes:
    name: of the instruction.
    kind: 'cublas', 'cudnn', 'triton', 'loop', 'reduce', 'transpose' or the
      opcode.
    result: shapes of what it writes, e.g. 'bf16[64,785,768]'.
    source: the operation that it was made from, as JAX named it, or ''.
    moved_bytes: that it reads and writes in one run.
    flops: of its products of matrices in one run.
    runs: how often it runs in one run of the program.
  """

  name: str
  kind: str
  result: str
  source: str
  moved_bytes: int
  flops: int
  runs: int

  @property
  def alike(self) -> tuple[str, str, str]:
    """Kind, source with * for the number of a layer or block, and result."""
    source = re.sub(r'\b(layer|block)\d+\b', r'\1*', self.source)
    return self.kind, source, self.result

  def seconds(self, chip: Chip) -> float:
    """The least that all its runs take, at the chip's published rates."""
    return self.runs * max(self.moved_bytes / chip.memory_bytes_per_s, self.flops / chip.flops)


def parse(text: str) -> list[Kernel]:
  """Finds every kernel of an optimised HLO program for a GPU, with its loops.

  Raises:
    ValueError: if it is no such text, or a loop's length is not known.
  """
  module = hlo.parse(text)

  def is_kernel(one):
    return one.opcode not in _FREE + _CONTAINERS and not one.opcode.endswith(
      ('-start', '-done')  # Collectives: counted in collectives.py.
    )

  return [_kernel(one, module, runs) for one, runs in module.walk(is_kernel, inside=_CONTAINERS)]


@dataclasses.dataclass(frozen=True)
class Total:
  """Kernels that are alike, those of all layers of a stack for instance.

  Attributes:
    kind: see Kernel.alike, and so on.
    source: of the first operation.
    result: what each writes.
    runs: of these kernels in one run of the program.
    moved_bytes: in all runs.
    seconds: at least, of all runs.
  """

  kind: str
  source: str
  result: str
  runs: int
  moved_bytes: int
  seconds: float


def totals(found: Iterable[Kernel], chip: Chip) -> list[Total]:
  """Returns the sums over kernels that are alike, the longest first."""
  groups = collections.defaultdict(list)
  for one in found:
    groups[one.alike].append(one)
  return sorted(
    (
      Total(
        *key,
        runs=sum(one.runs for one in group),
        moved_bytes=sum(one.runs * one.moved_bytes for one in group),
        seconds=sum(one.seconds(chip) for one in group),
      )
      for key, group in groups.items()
    ),
    key=lambda total: -total.seconds,
  )


def table(found: Iterable[Kernel], chip: Chip, rows: int) -> str:
  """Returns the kernels that take longest by the roofline, a line each."""
  return '\n'.join(
    [
      '    ms      GB  runs  kernel, writes, made from',
      *(
        f'{one.seconds * 1e3:6.2f} {one.moved_bytes / 1e9:7.2f} {one.runs:5} '
        f' {one.kind:9} {one.result[:60]:60} {one.source[-80:]}'
        for one in totals(found, chip)[:rows]
      ),
    ]
  )


def _kernel(one, module, runs):
  read = _read_bytes(one, module)
  result, written = one.type, hlo.size_bytes(one.type)
  flops, kind = 0, one.opcode
  if one.opcode == 'fusion':
    kind = _fusion_kind(one)
    body = module.computations[one.called[0]]
    flops = sum(_dot_flops(each, module.types) for each in body if each.opcode == 'dot')
    if body[-1].opcode == 'dynamic-update-slice':  # Written in place.
      written = hlo.size_bytes(module.types[body[-1].operand_names[1]])
  elif one.opcode == 'custom-call':
    target = re.search(r'custom_call_target="([^"]*)"', one.attributes)[1]
    kind, flops = _library_call(one, target, module.types)
    # Its first result; workspace follows, or statistics of a row.
    if kind in ('cublas', 'cudnn'):
      result = hlo.describe(shape for shape in hlo.shapes(one.type) if shape[0] not in ('s8', 'u8'))
      written = hlo.size_bytes(result)
  return Kernel(
    name=one.name,
    kind=kind,
    result=re.sub(r'\{[^}]*\}|/\*.*?\*/', '', result).strip('()'),
    source=one.source,
    moved_bytes=read + written,
    flops=flops,
    runs=runs,
  )


def _fusion_kind(one):
  if '__triton' in one.attributes:
    return 'triton'
  if 'transpose' in one.name:
    return 'transpose'
  return {'kLoop': 'loop', 'kInput': 'reduce'}.get(
    re.search(r'kind=(\w+)', one.attributes)[1], 'fusion'
  )


def _library_call(one, target, types):
  """Kind and FLOPs of a call of cuBLAS, cuDNN or something else."""
  if 'cublas' in target:
    noted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes)[1]
    return 'cublas', _product_flops(one, re.findall(r'\d+', noted), types)
  if 'fmha' in target:
    # Queries and keys are [batch, length, heads, size]: scores and values, and
    # in the backward pass scores again and four gradients.
    (_, query), (_, key) = (hlo.shapes(types[name])[0] for name in one.operand_names[:2])
    products = 5 if 'Backward' in target else 2
    return 'cudnn', products * 2 * math.prod(query) * key[1]
  return target, 0


def _dot_flops(one, types):
  noted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.attributes)[1]
  return _product_flops(one, re.findall(r'\d+', noted), types)


def _product_flops(one, contracted, types):
  _, left = hlo.shapes(types[one.operand_names[0]])[0]
  _, out = hlo.shapes(one.type)[0]
  return 2 * math.prod(out) * math.prod(left[int(i)] for i in contracted)


def _read_bytes(one, module):
  """Bytes read of all operands; not all of one that a fusion cuts from."""
  sizes = [hlo.size_bytes(module.types[name]) for name in one.operand_names]
  if one.opcode != 'fusion':
    return sum(sizes)
  body = module.computations[one.called[0]]
  readers = collections.defaultdict(list)
  for each in body:
    for index, name in enumerate(each.operand_names):
      readers[name].append((each, index))
  parameters = {int(each.operands): each.name for each in body if each.opcode == 'parameter'}

  def read(name, size):
    total = 0
    for reader, index in readers[name]:
      if reader.opcode == 'bitcast':
        total += read(reader.name, size)
      elif reader.opcode in _READ_IN_PART and index == 0:
        total += hlo.size_bytes(reader.type)
      elif reader.opcode == 'dynamic-update-slice' and index == 0:
        continue
      else:
        return size
    return min(total, size)

  return sum(read(parameters[i], size) for i, size in enumerate(sizes))
