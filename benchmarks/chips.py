"""Published figures of accelerators."""

from typing import NamedTuple


class Chip(NamedTuple):
  """What its maker publishes.

  Attributes:
    memory_bytes: of high-bandwidth memory.
    memory_bytes_per_s: between it and the chip.
    flops: bfloat16 operations per second, dense.
    links: to other chips.
    link_bytes_per_s: that one link sends, in one direction.
  """

  memory_bytes: float
  memory_bytes_per_s: float
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
# GPUs: NVIDIA's data sheets of the SXM cards, without sparsity; NVLink as 12 or
# 18 links of 25 GB/s.
CHIPS = {
  'v4': Chip(32e9, 1.23e12, 275e12, 6, 50e9),
  'v5e': Chip(16e9, 0.82e12, 197e12, 4, 50e9),
  'v5p': Chip(95e9, 2.77e12, 459e12, 6, 100e9),
  'v6e': Chip(32e9, 1.64e12, 918e12, 4, 100e9),
  'a100': Chip(80e9, 2.04e12, 312e12, 12, 25e9),
  'h100': Chip(80e9, 3.35e12, 989e12, 18, 25e9),
  'h200': Chip(141e9, 4.8e12, 989e12, 18, 25e9),
}


class Multiprocessors(NamedTuple):
  """What XLA's compiler must know of a GPU that is not there.

  Attributes:
    capability: CUDA's number of the generation.
    count: of multiprocessors.
    clock_ghz: at its highest.
    cache_bytes: of the second level.
    shared_bytes: of one multiprocessor; a block may have all but 1 KiB.
  """

  capability: tuple[int, int]
  count: int
  clock_ghz: float
  cache_bytes: int
  shared_bytes: int


# CUDA C++ Programming Guide, "Compute Capabilities", and the data sheets.
MULTIPROCESSORS = {
  'a100': Multiprocessors((8, 0), 108, 1.41, 40 * 2**20, 164 * 2**10),
  'h100': Multiprocessors((9, 0), 132, 1.98, 50 * 2**20, 228 * 2**10),
  'h200': Multiprocessors((9, 0), 132, 1.98, 50 * 2**20, 228 * 2**10),
}


def of_kind(device_kind: str) -> Chip | None:
  """Returns the figures of a GPU by what it calls itself, None if unknown."""
  for name in MULTIPROCESSORS:
    if name in device_kind.lower():
      return CHIPS[name]
  return None


def gpu_target(name: str) -> str:
  """Returns XLA's description of a GPU (`GpuTargetConfigProto`, as text)."""
  chip, gpu = CHIPS[name], MULTIPROCESSORS[name]
  major, minor = gpu.capability
  return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.count}
  fpus_per_core: {64 if major == 8 else 128}
  clock_rate_ghz: {gpu.clock_ghz}
  memory_bandwidth: {round(chip.memory_bytes_per_s)}
  device_memory_size: {round(chip.memory_bytes)}
  l2_cache_size: {gpu.cache_bytes}
  shared_memory_per_core: {gpu.shared_bytes}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {gpu.shared_bytes - 2**10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {name.upper()}"
"""
