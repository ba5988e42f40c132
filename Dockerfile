# Tuneboard in a container.
#
#   CPU   docker build -t tuneboard .
#   CUDA  docker build -t tuneboard --build-arg BASE=nvidia/cuda:13.0.2-runtime-ubuntu24.04 --build-arg TORCH_INDEX= .
#   run   docker run -p 127.0.0.1:7860:7860 -e TUNEBOARD_PASSWORD=... -v tuneboard:/workspace tuneboard
#         (with --gpus all for CUDA; the board refuses to start on 0.0.0.0 without a password)
#
# BASE is any Debian or Ubuntu whose python3 is 3.11 or newer. TORCH_INDEX is where torch comes from: by default
# PyTorch's own index of CPU builds, empty for PyPI, whose Linux build carries CUDA 13.
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG UID=10001

ENV DEBIAN_FRONTEND=noninteractive \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# tini reaps the runs, which are detached from the board. python:*-slim has its own python3 already.
# hadolint ignore=DL3008,SC2086
RUN set -eu; \
    packages="tini"; \
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3 python3-venv"; \
    apt-get update; \
    apt-get install -y --no-install-recommends $packages; \
    rm -rf /var/lib/apt/lists/*; \
    python3 -c 'import sys; sys.exit("BASE has python3 %d.%d, Tuneboard needs 3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'; \
    useradd --create-home --uid "$UID" --shell /usr/sbin/nologin tuneboard; \
    install -d -o tuneboard -g tuneboard /workspace

ENV PATH=/opt/tuneboard/bin:$PATH
WORKDIR /src

# torch, the largest part, in a layer of its own that a change of our code leaves alone.
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN python3 -m venv /opt/tuneboard \
    && torch="$(grep '^torch==' constraints.txt)" \
    && if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" "$torch"; \
       else pip install -c constraints.txt "$torch"; fi

COPY . .
RUN pip install -c constraints.txt . && rm -rf /src/*

ENV HF_HOME=/workspace/.cache/huggingface \
    GRADIO_ANALYTICS_ENABLED=False
USER ${UID}
WORKDIR /workspace
VOLUME /workspace
EXPOSE 7860

HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]

ENTRYPOINT ["tini", "--"]
CMD ["tuneboard", "board", "--host", "0.0.0.0", "--port", "7860"]
