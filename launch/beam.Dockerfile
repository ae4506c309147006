# The image of Beam's workers: their start-up program, Beam, and this package.
#
#   docker build -f launch/beam.Dockerfile -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/alpro_beam .
#   docker push ...
#
# Beam and Python must be of the versions that start the pipeline; see docs/buckets.md.
FROM apache/beam_python3.11_sdk:2.77.0
WORKDIR /alpro_jax

# Without the project itself, the last line of its requirements, which is not here yet.
COPY requirements.txt requirements-beam.txt ./
RUN sed -i '/^-e /d' requirements.txt \
  && pip install --no-cache-dir -r requirements.txt \
  && pip install --no-cache-dir -r requirements-beam.txt
COPY . .
# Beam wants older versions of some packages than are named here, so none is looked for.
RUN pip install --no-cache-dir --no-deps .
