"""The text of a compiled program: its computations and their instructions.

    module = hlo.parse(compiled.as_text())
    for one in module.computations[module.entry]: ...

Only what the counting of collectives and of kernels needs is understood.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `%name = type opcode(operands), attributes`."""

  name: str
  type: str
  opcode: str
  operands: str
  attributes: str

  @functools.cached_property
  def operand_names(self) -> list[str]:
    return re.findall(r'%([\w.\-]+)', self.operands)

  @functools.cached_property
  def source(self) -> str:
    """The operation that it was made from, as JAX named it, or ''."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''

  @functools.cached_property
  def called(self) -> list[str]:
    """Names of the computations that it runs."""
    if self.opcode in ('async-update', 'async-done'):
      return []  # Named there again; async-start runs it.
    names = re.findall(
      r'(?:body|condition|calls|to_apply|true_computation|false_computation)'
      r'=%?([\w.\-]+)',
      self.attributes,
    )
    for group in re.findall(
      r'(?:branch_computations|called_computations)=\{([^}]*)\}', self.attributes
    ):
      names += re.findall(r'%?([\w.\-]+)', group)
    return names


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: the instructions of each, by name.
    entry: the name of the one that is run.
    types: of all instructions, by name.
  """

  computations: dict[str, list[Instruction]]
  entry: str
  types: dict[str, str]

  def trip_count(self, loop: Instruction) -> int | None:
    """How often a loop turns, or None if neither note nor end tells."""
    noted = re.search(r'known_trip_count\W+n\W+(\d+)', loop.attributes)
    if noted:
      return int(noted[1])
    # Without a note: jax.lax.scan counts from 0 while less than a constant.
    name = re.search(r'condition=%?([\w.\-]+)', loop.attributes)[1]
    body = self.computations[name]
    constants = {
      i.name: int(i.operands) for i in body if i.opcode == 'constant' and i.operands.isdigit()
    }
    end = body[-1]
    if end.opcode == 'compare' and 'direction=LT' in end.attributes:
      return constants.get(end.operand_names[-1])
    return None

  def walk(
    self, wanted: Callable[[Instruction], bool], inside: Container[str] | None = None
  ) -> Iterator[tuple[Instruction, int]]:
    """Yields the wanted instructions, each with its runs, loops counted.

    Args:
      wanted: whether an instruction is one; what it calls is not searched.
      inside: opcodes whose computations are searched; without it, all.
    Raises:
      ValueError: for a loop of unknown length with a wanted instruction.
    """

    def searched(one):
      return one.called if inside is None or one.opcode in inside else ()

    @functools.cache
    def holds(name):
      return any(wanted(one) or any(map(holds, searched(one))) for one in self.computations[name])

    def visit(name, runs):
      for one in self.computations[name]:
        if wanted(one):
          yield one, runs
        elif any(map(holds, searched(one))):
          turns = self.trip_count(one) if one.opcode == 'while' else 1
          if turns is None:
            raise ValueError(
              f'how often the loop {one.name} turns is not known; use '
              'jax.lax.scan, whose length is.'
            )
          for called in one.called:
            yield from visit(called, runs * turns)

    yield from visit(self.entry, 1)


def parse(text: str) -> Module:
  """Reads the text of an optimised HLO program.

  Raises:
    ValueError: if it has no entry, so is not such a text.
  """
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
  types = {one.name: one.type for body in computations.values() for one in body}
  return Module(computations, entry, types)


def _instruction(line):
  """'%a = f32[8] add(%b, %c), x=y' -> its parts; None for other lines."""
  start = re.match(r'\s+(?:ROOT )?%?([^\s=]+) = ', line)
  if not start:
    return None
  rest = line[start.end() :]
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  kind, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  rest = rest[len(opcode) :]
  end = _closing(rest)
  return Instruction(start[1], kind, opcode, rest[1:end], rest[end + 1 :])


def _closing(text):
  """Place of the parenthesis that closes the first one."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if depth == 0:
      return i
  raise ValueError(f'no closing parenthesis in {text[:80]!r}.')


_SHAPE = re.compile(r'\b([a-z]+\d+\w*|pred)\[([\d,]*)\]')


def shapes(kind: str) -> list[tuple[str, tuple[int, ...]]]:
  """'(f32[2,3]{1,0}, pred[])' -> [('f32', (2, 3)), ('pred', ())]."""
  return [
    (dtype, tuple(int(n) for n in sizes.split(',') if n)) for dtype, sizes in _SHAPE.findall(kind)
  ]


def describe(found: Iterable[tuple[str, tuple[int, ...]]]) -> str:
  """[('f32', (2, 3)), ('pred', ())] -> 'f32[2,3] pred[]'."""
  return ' '.join(f'{dtype}[{",".join(map(str, sizes))}]' for dtype, sizes in found)


def size_bytes(kind: str) -> int:
  """Bytes of an array, or of all arrays of a tuple."""
  return sum(math.ceil(math.prod(sizes) * _bits(dtype) / 8) for dtype, sizes in shapes(kind))


def _bits(dtype):
  # f32, bf16, u8, s4, f8e4m3fn: the first number is the width in bits.
  return 8 if dtype == 'pred' else int(re.search(r'\d+', dtype)[0])
