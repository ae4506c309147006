"""What launch/benchmark.py and launch/compile_for.py measure.

No part of the library: these modules import alpro_jax, never the reverse.
"""
