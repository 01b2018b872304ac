# The worker: front and engine. The dependencies are one layer of their own, keyed by the lock (and TORCH_INDEX) alone: 4.9 GB with the
# CUDA build of torch, built once and pulled once per lock; our package is a thin layer on top of it.
# Build it with `make images`; a CPU-only flavour: make images TORCH_INDEX=<an index of CPU wheels>.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
# What is mounted below is no part of a layer's key for every builder: the digests are.
ARG LOCK_DIGEST=
ARG TORCH_INDEX=
RUN --mount=type=bind,source=images/install.sh,target=/build/install.sh \
    --mount=type=bind,source=bench/requirements.lock,target=/build/tools.lock \
    --mount=type=bind,source=worker/requirements.lock,target=/build/requirements.lock \
    --mount=type=secret,id=ca,target=/build/ca.crt --mount=type=secret,id=index,target=/build/index.env \
    --mount=type=cache,target=/build/cache \
    TORCH_INDEX="${TORCH_INDEX}" sh /build/install.sh dependencies

FROM dependencies AS package
ARG SOURCE_DIGEST=
RUN --mount=type=bind,source=images/install.sh,target=/build/install.sh \
    --mount=type=bind,source=bench/requirements.lock,target=/build/tools.lock \
    --mount=type=bind,source=worker,target=/build/component \
    --mount=type=secret,id=ca,target=/build/ca.crt --mount=type=secret,id=index,target=/build/index.env \
    --mount=type=cache,target=/build/cache \
    sh /build/install.sh package

# From the dependencies, not from the base: copying them would write their layer a second time.
FROM dependencies
ARG VERSION=0
ARG FLAVOUR=cuda
LABEL org.opencontainers.image.title="pagoda-worker" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      dev.pagoda.flavour="${FLAVOUR}"
# Triton starts kernels through a launcher that it compiles, against Python's headers, when it first needs one.
RUN if [ "${FLAVOUR}" = cuda ]; then \
      headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
      apt-get update -q && \
      apt-get install -qy --no-install-recommends gcc libc6-dev $(test -e "$headers/Python.h" || echo python3-dev) && \
      rm -rf /var/lib/apt/lists/* /var/cache/apt; \
    fi
COPY --from=package /opt/package /opt/package
# Where fetched models lie: a new named volume of Docker's takes this folder's owner.
RUN install -d -o 10001 -g 10001 /models
# The root is read-only in our pods: caches of Triton, torch and the hub go where HOME is, a volume. NVIDIA_* is what the container
# runtime of a GPU node asks for.
# USER, because some libraries ask who the user is and fail where the number has no name.
ENV PATH=/opt/pagoda/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=pagoda XDG_CACHE_HOME=/tmp/.cache \
    TRITON_CACHE_DIR=/tmp/.cache/triton TORCHINDUCTOR_CACHE_DIR=/tmp/.cache/inductor HF_HOME=/tmp/.cache/huggingface \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "pagoda_worker"]
