"""What a compiled program sends between devices, counted from its text.

    compiled = jax.jit(f).lower(...).compile()
    for one in collectives.parse(compiled.as_text()): ...

A collective in the body of a loop counts as often as the loop turns. What goes from one
TPU slice to another the compiler writes as a transfer by the host, and that is what is
counted here: of a reduction over all chips it leaves those inside a slice, and the
exchange of what each chip then has between slices.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

from benchmarks import hlo

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')
# Between slices: `_xla_megascale_transfer_type` -> kind.
TRANSFERS = {kind.upper().replace('-', '_'): kind for kind in KINDS}
TRANSFERS['ONE_TO_ONE'] = 'collective-permute'


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction.

  Attributes:
    kind: one of KINDS.
    shapes: of what goes in on each device, e.g. 'f32[8,64] f32[]'.
    operand_bytes: of these.
    group: devices that take part together.
    runs: how often it runs in one run of the program.
    source: the operation that it was made from, as JAX named it, or ''.
    between_slices: it goes over the network between TPU slices, not over chips' links.
  """

  kind: str
  shapes: str
  operand_bytes: int
  group: int
  runs: int
  source: str
  between_slices: bool = False

  @property
  def sent_bytes(self) -> int:
    """Bytes that each device sends in all runs, by the ring algorithms."""
    n, size = self.group, self.operand_bytes
    once = {
      'all-reduce': 2 * size * (n - 1) / n,
      'all-gather': size * (n - 1),
      'reduce-scatter': size * (n - 1) / n,
      'all-to-all': size * (n - 1) / n,
      'collective-permute': size,
    }[self.kind]
    return round(once * self.runs)


@dataclasses.dataclass(frozen=True)
class Total:
  """Sums over the collectives of one kind.

  Attributes:
    instructions: in the text.
    runs: of these in one run of the program, loops counted.
    operand_bytes: that go in on each device, in all runs.
    sent_bytes: see Collective.
  """

  instructions: int
  runs: int
  operand_bytes: int
  sent_bytes: int


def totals(found: Iterable[Collective]) -> dict[str, Total]:
  """Returns the sums by kind; kinds that do not occur are left out."""
  found = list(found)
  result = {}
  for kind in KINDS:
    ours = [one for one in found if one.kind == kind]
    if ours:
      result[kind] = Total(
        instructions=len(ours),
        runs=sum(one.runs for one in ours),
        operand_bytes=sum(one.operand_bytes * one.runs for one in ours),
        sent_bytes=sum(one.sent_bytes for one in ours),
      )
  return result


def parse(text: str) -> list[Collective]:
  """Finds every collective of an optimised HLO program, with its loops.

  Args:
    text: of a compiled module, partitioned: shapes are those of one device.
  Raises:
    ValueError: for a loop of unknown length with a collective inside, and for
      groups of devices or transfers written in a way that is not known here.
  """
  module = hlo.parse(text)
  devices = _header_count(text, 'num_partitions') * _header_count(text, 'replica_count')
  return [
    _collective(one, module.types, runs, devices)
    for one, runs in module.walk(lambda one: _kind(one) in KINDS)
  ]


def _kind(one):
  if one.opcode == 'send' and (found := re.search(r'_transfer_type="(\w+)"', one.attributes)):
    if found[1] not in TRANSFERS:
      raise ValueError(f'transfers of type {found[1]} between slices are not known here.')
    return TRANSFERS[found[1]]
  return one.opcode.removesuffix('-start')


def _collective(one, types, runs, devices):
  kind = _kind(one)
  if between := one.opcode == 'send':
    group = _slices(one)
  else:
    group = devices if kind == 'collective-permute' else _group(one, devices)
  sent = [types[name] for name in one.operand_names]
  return Collective(
    kind=kind,
    shapes=hlo.describe(shape for each in sent for shape in hlo.shapes(each)),
    operand_bytes=sum(hlo.size_bytes(each) for each in sent),
    group=group,
    runs=runs,
    source=one.source,
    between_slices=between,
  )


def _slices(one):
  """Slices that take part: those of _xla_megascale_target="{1,2}x{0:7}"; else of pairs."""
  listed = re.search(r'_megascale_target="\{([\d,]+)\}x', one.attributes)
  return len(listed[1].split(',')) if listed else 2


def _group(one, devices):
  """Devices that take part together; the text has four ways to say it.

  {{0,1},{2,3}}   [2,2]<=[4]   mesh['a'=2,'b'=2] {'b'}   {} is all
  """
  _, _, text = one.attributes.partition('replica_groups=')
  if counted := re.match(r'\[\d+,(\d+)\]<=', text):
    return int(counted[1])
  if named := re.match(r'mesh\[(.*?)\][^{]*\{(.*?)\}', text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    # An axis may be split: 'a':(2)4 is 4 of its devices.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if listed := re.match(r'\{\{?([\d,]*)\}', text):
    return len(listed[1].split(',')) if listed[1] else devices
  raise ValueError(f'no known replica_groups in {one.attributes[:200]!r}.')


def _header_count(text, name):
  found = re.search(rf'HloModule .*\b{name}=(\d+)', text)
  return int(found[1]) if found else 1
