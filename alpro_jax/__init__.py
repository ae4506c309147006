"""alpro_jax: video-and-language pre-training with entity prompts, in JAX.

Dimension letters, used in docstrings and in einops patterns (lower case):

  B batch, global     T frames            H W C pixels        P patch side
  N patches/frame     S visual tokens     L text tokens       D width
  A heads             K head dim          M MLP width         E joint embedding
  V vocabulary        Z entities

S is 1 + N: the class token and one token per patch, averaged over time.
"""

__version__ = '0.1.0'
