"""What a compiled program sends between devices, counted from its text.

    compiled = jax.jit(f).lower(...).compile()
    for one in collectives.parse(compiled.as_text()): ...

A collective in the body of a loop counts as often as the loop turns.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = (
    'all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute',
    'all-to-all',
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction.

  Attributes:
    kind: one of KINDS.
    shapes: of what goes in on each device, e.g. 'f32[8,64] f32[]'.
    operand_bytes: of these.
    group: devices that take part together.
    times: how often it runs in one run of the program.
    source: the operation that it was made from, as JAX named it, or ''.
  """

  kind: str
  shapes: str
  operand_bytes: int
  group: int
  times: int
  source: str

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
    return round(once * self.times)


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
          runs=sum(one.times for one in ours),
          operand_bytes=sum(one.operand_bytes * one.times for one in ours),
          sent_bytes=sum(one.sent_bytes for one in ours),
      )
  return result


def parse(text: str) -> list[Collective]:
  """Finds every collective of an optimised HLO program, with its loops.

  Args:
    text: of a compiled module, partitioned: shapes are those of one device.
  Raises:
    ValueError: for a loop of unknown length with a collective inside, and for
      groups of devices written in a way that is not known here.
  """
  computations, entry = _computations(text)
  devices = _header_count(text, 'num_partitions') * _header_count(
      text, 'replica_count'
  )
  types = {
      one.name: one.type for body in computations.values() for one in body
  }
  found = []

  def visit(name, times):
    for one in computations[name]:
      kind = one.opcode.removesuffix('-start')
      if kind in KINDS:
        found.append(_collective(kind, one, types, times, devices))
        continue
      inner = _called(one)
      if not inner:
        continue
      turns = 1
      if one.opcode == 'while':
        if not any(has_collective(called) for called in inner):
          continue
        turns = _trip_count(one, computations)
      for called in inner:
        visit(called, times * turns)

  memo = {}

  def has_collective(name):
    if name not in memo:
      memo[name] = any(
          one.opcode.removesuffix('-start') in KINDS
          or any(has_collective(called) for called in _called(one))
          for one in computations[name]
      )
    return memo[name]

  visit(entry, 1)
  return found


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  operands: str
  attributes: str


def _computations(text):
  """Returns {name: its instructions} and the name of the entry."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if current is None:
      start = re.match(r'(ENTRY )?%?([^\s(]+) \(.*\{$', line)
      if start:
        current = computations[start[2]] = []
        entry = start[2] if start[1] else entry
    elif line.startswith('}'):
      current = None
    elif one := _instruction(line):
      current.append(one)
  if entry is None:
    raise ValueError(
        'the text has no ENTRY computation; give the text of a compiled '
        'program, as compiled.as_text() returns it.'
    )
  return computations, entry


def _instruction(line):
  """'%a = f32[8] add(%b, %c), x=y' -> its parts; None for other lines."""
  start = re.match(r'\s+(?:ROOT )?%?([^\s=]+) = ', line)
  if not start:
    return None
  rest = line[start.end():]
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  kind, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  rest = rest[len(opcode):]
  end = _closing(rest)
  return _Instruction(
      start[1], kind, opcode, rest[1:end], rest[end + 1 :]
  )


def _closing(text):
  """Place of the parenthesis that closes the first one."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if depth == 0:
      return i
  raise ValueError(f'no closing parenthesis in {text[:80]!r}.')


def _called(one):
  """Names of the computations that an instruction runs."""
  if one.opcode in ('async-update', 'async-done'):
    return []  # Named there again; async-start runs it.
  names = re.findall(
      r'(?:body|condition|calls|to_apply|true_computation|false_computation)'
      r'=%?([\w.\-]+)', one.attributes)
  for group in re.findall(
      r'(?:branch_computations|called_computations)=\{([^}]*)\}',
      one.attributes,
  ):
    names += re.findall(r'%?([\w.\-]+)', group)
  return names


def _trip_count(one, computations):
  """How often a loop turns: as noted by the compiler, or as its end tells."""
  noted = re.search(r'known_trip_count\W+n\W+(\d+)', one.attributes)
  if noted:
    return int(noted[1])
  # Without a note: jax.lax.scan counts from 0 while less than a constant.
  name = re.search(r'condition=%?([\w.\-]+)', one.attributes)[1]
  body = computations[name]
  constants = {
      i.name: int(i.operands) for i in body
      if i.opcode == 'constant' and i.operands.isdigit()
  }
  end = body[-1]
  if end.opcode == 'compare' and 'direction=LT' in end.attributes:
    limit = re.findall(r'%([\w.\-]+)', end.operands)[-1]
    if limit in constants:
      return constants[limit]
  raise ValueError(
      f'loop {one.name} holds a collective, and how often it turns is not '
      'known; use jax.lax.scan, whose length is.'
  )


def _collective(kind, one, types, times, devices):
  shapes = [
      shape
      for name in re.findall(r'%([\w.\-]+)', one.operands)
      for shape in _SHAPE.findall(types[name])
  ]
  source = re.search(r'op_name="([^"]*)"', one.attributes)
  return Collective(
      kind=kind,
      shapes=' '.join(f'{dtype}[{size}]' for dtype, size in shapes),
      operand_bytes=sum(_bytes(*shape) for shape in shapes),
      group=devices if kind == 'collective-permute' else _group(one, devices),
      times=times,
      source=source[1] if source else '',
  )


_SHAPE = re.compile(r'\b([a-z]+\d+\w*|pred)\[([\d,]*)\]')


def _bytes(dtype, size):
  count = math.prod(int(n) for n in size.split(',') if n)
  if dtype == 'pred':
    return count
  # f32, bf16, u8, s4, f8e4m3fn: the first number is the width in bits.
  return math.ceil(count * int(re.search(r'\d+', dtype)[0]) / 8)


def _group(one, devices):
  """Devices that take part together; the text has four ways to say it.

      {{0,1},{2,3}}   [2,2]<=[4]   mesh['a'=2,'b'=2] {'b'}   {} is all
  """
  _, _, text = one.attributes.partition('replica_groups=')
  if counted := re.match(r'\[\d+,(\d+)\]<=', text):
    return int(counted[1])
  if named := re.match(r'mesh\[(.*?)\][^{]*\{(.*?)\}', text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    # An axis may be cut: 'a':(2)4 is 4 of its devices.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if listed := re.match(r'\{\{?([\d,]*)\}', text):
    return len(listed[1].split(',')) if listed[1] else devices
  raise ValueError(f'no known replica_groups in {one.attributes[:200]!r}.')


def _header_count(text, name):
  found = re.search(rf'HloModule .*\b{name}=(\d+)', text)
  return int(found[1]) if found else 1
