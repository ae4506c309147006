"""gs:// and s3:// on this machine, for tests: servers, and what tells libraries of them."""

import contextlib
import os
import uuid

import pytest

from alpro_jax import buckets
from tests import gcs_server


@contextlib.contextmanager
def gcs(**options):
  """Yields (server, address of an empty bucket)."""
  server = gcs_server.Server(**options)
  try:
    with _environment(server.environment()):
      yield server, f'gs://bucket-{uuid.uuid4().hex[:8]}'
  finally:
    server.close()


@contextlib.contextmanager
def s3():
  """Yields (server, address of an empty bucket); of Amazon's, as moto has it."""
  server = pytest.importorskip('moto.server').ThreadedMotoServer(port=0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  told = {
    'AWS_ENDPOINT_URL': f'http://{host}:{port}',
    'AWS_ACCESS_KEY_ID': 'none',
    'AWS_SECRET_ACCESS_KEY': 'none',
    'AWS_DEFAULT_REGION': 'us-east-1',
  }
  try:
    with _environment(told):
      name = f'bucket-{uuid.uuid4().hex[:8]}'
      import s3fs

      s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
      yield server, f's3://{name}'
  finally:
    server.stop()


@contextlib.contextmanager
def _environment(told):
  """Sets variables, and has the libraries read them anew."""
  old = {name: os.environ.get(name) for name in told}
  os.environ.update(told)
  _forget()
  try:
    yield
  finally:
    for name, value in old.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})
    _forget()


def _forget():
  import fsspec

  buckets._filesystem.cache_clear()
  buckets._store.cache_clear()
  for scheme in buckets.SCHEMES:
    with contextlib.suppress(ImportError):
      fsspec.get_filesystem_class(scheme).clear_instance_cache()
