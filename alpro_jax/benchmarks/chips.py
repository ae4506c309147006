"""Published figures of accelerators."""

from typing import NamedTuple


class Chip(NamedTuple):
  """What its maker publishes.

  Attributes:
    memory_bytes: of high-bandwidth memory.
    flops: bfloat16 operations per second, dense.
    links: to other chips.
    link_bytes_per_s: that one link sends, in one direction.
  """

  memory_bytes: float
  flops: float
  links: int
  link_bytes_per_s: float

  @property
  def send_bytes_per_s(self) -> float:
    """What all links send together."""
    return self.links * self.link_bytes_per_s


# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture",
# where bandwidth between chips counts both directions (v5e 400 GB/s, v5p 1,200,
# v6e 800); v4's links from Jouppi et al., "TPU v4", ISCA 2023. Memory
# in decimal GB, the smaller reading: the runtime keeps some of it for itself.
# H200: NVIDIA's data sheet, without sparsity; NVLink as 18 links of 25 GB/s.
CHIPS = {
    'v4': Chip(32e9, 275e12, 6, 50e9),
    'v5e': Chip(16e9, 197e12, 4, 50e9),
    'v5p': Chip(95e9, 459e12, 6, 100e9),
    'v6e': Chip(32e9, 918e12, 4, 100e9),
    'NVIDIA H200': Chip(141e9, 989e12, 18, 25e9),
}
