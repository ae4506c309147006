"""alpro_jax: video-and-language pre-training with entity prompts, in JAX.

  model = alpro_jax.load('runs/pretrain')
  model.similarity(['a dog swims'], ['a.mp4', 'b.mp4'])

Dimension letters, used in docstrings and in einops patterns (lower case):

  B batch, global     T frames            H W C pixels        P patch side
  N patches/frame     S visual tokens     L text tokens       D width
  A heads             K head dim          M MLP width         E joint embedding
  V vocabulary        Z entities

S is 1 + N: the class token and one token per patch, averaged over time.
"""

__version__ = '0.1.0'

__all__ = ('Model', 'load', 'open_index')


def __getattr__(name: str):
  # Late: parts of the library, and its worker processes, do without jax and Orbax.
  if name in __all__:
    from alpro_jax import api

    return getattr(api, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
