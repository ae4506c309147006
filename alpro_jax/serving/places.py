"""Where trained models lie: on this machine, in the package, or on the Hugging Face Hub."""

import os
import pathlib
import re

from alpro_jax.serving import layouts
from alpro_jax.train import checkpoints

SHIPPED = pathlib.Path(__file__).parents[1] / 'shipped'
_HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')


def find(source: str | os.PathLike) -> checkpoints.Checkpoint:
  """Returns where a trained model lies on this machine, checked; trained.load takes it.

  Args:
    source: the workdir of a run, the folder of a checkpoint, a folder that
      `Model.save_pretrained` or launch/export.py wrote, or the name of a model
      that comes with the package ('shapes').

  Raises:
    FileNotFoundError: if there is nothing by that name.
    ValueError: if what is there is damaged, or no model.
  """
  name, folder = str(source), checkpoints.local(source)
  if not folder.exists():
    if not (SHIPPED / name / layouts.CONFIG).is_file():
      shipped = sorted(x.name for x in SHIPPED.glob('*') if layouts.is_hub(x))
      raise FileNotFoundError(
        f'there is no model {name!r}: expected a folder (of a run, a checkpoint, '
        f'save_pretrained or an export) or one of {shipped}.'
      )
    folder = SHIPPED / name
  return layouts.find(folder) or checkpoints.find(folder)


def download(source: str | os.PathLike) -> str | os.PathLike:
  """Returns the folder of 'user/name' on the Hub, from the network or its cache; others as given.

  Raises:
    FileNotFoundError: if the Hub does not give it.
    ImportError: without huggingface_hub.
  """
  name = str(source)
  # In a folder that is here a name is a slip, and no user of the Hub.
  if not _HUB_NAME.fullmatch(name) or pathlib.Path(source).parent.is_dir():
    return source
  try:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
  except ImportError as error:
    raise ImportError(
      f'there is no folder {name!r}; to get it from the Hugging Face Hub: '
      'pip install huggingface_hub.'
    ) from error
  try:
    return pathlib.Path(snapshot_download(name))
  except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
    reason, *_ = str(error).split('\n')
    raise FileNotFoundError(
      f'there is no folder {name!r}, and the Hugging Face Hub did not give it: {reason}'
    ) from error
