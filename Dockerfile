# The studio as an image: `docker build --target cpu .` or `--target cuda .`; docs/operating.md tells how to run it.
#
# BASE is any Debian-like image with Python 3.11 or later; pin it by digest to build the same image again. pip is
# told of other indexes by PIP_INDEX_URL and PIP_EXTRA_INDEX_URL; the target `cpu` needs torch's index for CPUs,
# because on Linux the default one has only the build for GPUs. EXTRAS=[ray] adds replicas. No weights are inside
# but those of nano, which are part of the package.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/omnigen2/bin:$PATH
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/omnigen2
WORKDIR /source
COPY constraints.txt ./
RUN pip install --constraint constraints.txt setuptools
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${BASE} AS environment
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/omnigen2/bin:$PATH
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=
RUN python3 -m venv /opt/omnigen2
COPY constraints.txt /

FROM environment AS cpu-environment
RUN pip install --constraint /constraints.txt torch \
    && python -c "import torch; assert not torch.version.cuda, 'this torch is for GPUs: set PIP_EXTRA_INDEX_URL'"
COPY --from=wheel /wheels /wheels
RUN pip install --constraint /constraints.txt "$(echo /wheels/*.whl)$EXTRAS"

FROM environment AS cuda-environment
RUN pip install --constraint /constraints.txt torch \
    && python -c "import torch; assert torch.version.cuda, 'this torch is for CPUs: unset PIP_EXTRA_INDEX_URL'"
COPY --from=wheel /wheels /wheels
RUN pip install --constraint /constraints.txt "$(echo /wheels/*.whl)$EXTRAS"

FROM ${BASE} AS studio
RUN groupadd --gid 1000 studio \
    && useradd --uid 1000 --gid studio --no-create-home --home-dir /data studio \
    && install --directory --owner studio --group studio /data/store /data/models
# hadolint ignore=DL3064  # the path of the token file, not a token
ENV PATH=/opt/omnigen2/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/data \
    OMNIGEN2_STORE=/data/store OMNIGEN2_MODELS=/data/models XDG_DATA_HOME=/data/store/share \
    OMNIGEN2_TRANSPORT=http OMNIGEN2_HOST=0.0.0.0 OMNIGEN2_TOKEN_FILE=/run/secrets/tokens
WORKDIR /data
USER 1000:1000
VOLUME ["/data/store", "/data/models"]
EXPOSE 8765
# Whether it lives, not whether it is ready: a server with a full queue must not be restarted for that.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/healthz', timeout=4)"]
ENTRYPOINT ["omnigen2-mcp"]
CMD ["serve"]

FROM studio AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-environment /opt/omnigen2 /opt/omnigen2

FROM studio AS cpu
COPY --from=cpu-environment /opt/omnigen2 /opt/omnigen2
