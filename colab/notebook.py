"""What both notebooks share: installing, running commands, showing pages.

Of the standard library alone, until something is shown: it runs before
anything is installed.
"""

import html
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

# TensorFlow only reads frames; what it says while starting is noise.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What the package imports, and what pip calls it. Colab has jax for whatever
# accelerator it lends, so that jax is not among them.
NEEDED = {
  'flax': 'flax',
  'optax': 'optax',
  'orbax': 'orbax-checkpoint',
  'clu': 'clu',
  'ml_collections': 'ml-collections',
  'einops': 'einops',
  'tensorflow': 'tensorflow-cpu',
  'tensorboard': 'tensorboard',
  'tensorflow_datasets': 'tensorflow-datasets',
  'array_record': 'array_record',
  'importlib_resources': 'importlib_resources',
  'safetensors': 'safetensors',
  'sentencepiece': 'sentencepiece',
  'tokenizers': 'tokenizers',
  'ftfy': 'ftfy',
  'textblob': 'textblob',
  'av': 'av',
  'PIL': 'pillow',
  'jinja2': 'jinja2',
  'lancedb': 'lancedb',
  'matplotlib': 'matplotlib',
}
# I1123 05:10:15.306124 139793585134464 loop.py:79]
_LOG_PREFIX = re.compile(r'^[IWEF]\d{4} \S+ +\d+ [\w.]+:\d+\] ')


def install() -> list[str]:
  """Installs what is missing; what is there keeps its version, jax as well.

  Returns:
    what was installed.
  """
  missing = [
    package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None
  ]
  if not missing:
    return []
  with tempfile.NamedTemporaryFile('w', suffix='.txt') as kept:
    for known in importlib.metadata.distributions():
      kept.write(f'{known.metadata["Name"]}=={known.version}\n')
    kept.flush()
    _stream(
      [sys.executable, '-m', 'pip', 'install', '--quiet', f'--constraint={kept.name}', *missing]
    )
  importlib.invalidate_caches()
  return missing


def run(command: str, *options: str, only: str = '') -> None:
  """Runs a command of launch/ and shows what it says.

  Args:
    command: its name, without folder and suffix.
    options: its words and flags.
    only: show only lines that match this regular expression.
  Raises:
    RuntimeError: with the end of what it said, if it fails.
  """
  line = [f'launch/{command}.py', *map(str, options)]
  print(f'$ python {shlex.join(line)}', flush=True)
  _stream([sys.executable, *line], only)


def show(page: str, height: int = 640) -> None:
  """Shows a whole page in a cell, in a frame: it has a style of its own.

  Args:
    page: HTML that stands alone.
    height: in pixels; a shorter page takes less, a longer one scrolls.
  """
  from IPython.display import HTML, display

  fit = (
    f"this.style.height=Math.min(this.contentDocument.documentElement.scrollHeight+4,{height})+'px'"
  )
  found = re.search('<title>(.*?)</title>', page)  # Escaped already.
  title = found[1] if found else 'A page'
  display(
    HTML(
      f'<div><iframe title="{title}" srcdoc="{html.escape(page)}" onload="{fit}" style="'
      f'width:100%;height:{height}px;border:1px solid #dfe3e8"></iframe>'
      '</div>'
    )
  )


def _stream(line, only=''):
  environment = dict(os.environ)
  environment['PYTHONPATH'] = os.pathsep.join(
    filter(None, (str(ROOT), environment.get('PYTHONPATH')))
  )
  said = []
  # Line by line, as it comes: a training takes its time.
  with subprocess.Popen(
    line,
    cwd=ROOT,
    env=environment,
    text=True,
    errors='replace',
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  ) as process:
    try:
      for text in process.stdout:
        text = _LOG_PREFIX.sub('', text)
        said.append(text)
        if re.search(only, text):
          print(text, end='', flush=True)
    except KeyboardInterrupt:
      # The command got it as well, and saves what it has.
      process.wait()
      raise
  if process.returncode:
    raise RuntimeError(
      f'{shlex.join(line)} ended with code {process.returncode}:\n' + ''.join(said)[-3000:]
    )
