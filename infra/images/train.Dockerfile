# The training image: head, workers and driver. It holds the commit that is checked out, with .git, by which DVC and
# MLflow name it. BASE is Debian 12 by its digest, which has no default that would grow old:
#   docker buildx imagetools inspect debian:bookworm-slim --format '{{.Manifest.Digest}}'
#   docker build --build-arg BASE=debian@sha256:… -f infra/images/train.Dockerfile \
#       -t registry.example.org/dgunet-train:0.1.0 .
# torch's wheel brings CUDA. For CPUs, 3.05 GB: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG BASE
FROM ${BASE}
# bash and python: the probes of KubeRay; libgl1 and libglib2.0-0: OpenCV
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        bash ca-certificates git libgl1 libglib2.0-0 python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home dgunet
ENV PATH=/opt/venv/bin:$PATH \
    DVC_NO_ANALYTICS=true \
    MPLBACKEND=Agg \
    PYTHONUNBUFFERED=1
# The packages are a layer of their own: it stays when only code has changed.
WORKDIR /opt/dgunet
COPY constraints.txt pyproject.toml ./
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt "pip>=25.1" "hatchling>=1.27" \
    && python -c 'import sys, tomllib; print(*tomllib.load(sys.stdin.buffer)["project"]["dependencies"], sep="\n")' \
        < pyproject.toml > /tmp/requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --group pipeline --requirement /tmp/requirements.txt
COPY --chown=10001:10001 . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && chown 10001:10001 /opt/dgunet
USER 10001
ENTRYPOINT ["tini", "-g", "--"]
CMD ["bash"]
