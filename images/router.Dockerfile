# The router: Python, its pinned dependencies, our package. No torch, no compiler, no shell script; one process.
# Build it with `make images`; by hand: docker build -f images/router.Dockerfile .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
# What is mounted below is no part of a layer's key for every builder: the digests are.
ARG LOCK_DIGEST=
RUN --mount=type=bind,source=images/install.sh,target=/build/install.sh \
    --mount=type=bind,source=bench/requirements.lock,target=/build/tools.lock \
    --mount=type=bind,source=router/requirements.lock,target=/build/requirements.lock \
    --mount=type=secret,id=ca,target=/build/ca.crt --mount=type=secret,id=index,target=/build/index.env \
    --mount=type=cache,target=/build/cache \
    sh /build/install.sh dependencies

FROM dependencies AS package
ARG SOURCE_DIGEST=
RUN --mount=type=bind,source=images/install.sh,target=/build/install.sh \
    --mount=type=bind,source=bench/requirements.lock,target=/build/tools.lock \
    --mount=type=bind,source=router,target=/build/component \
    --mount=type=secret,id=ca,target=/build/ca.crt --mount=type=secret,id=index,target=/build/index.env \
    --mount=type=cache,target=/build/cache \
    sh /build/install.sh package

# From the dependencies, not from the base: copying them would write their layer a second time.
FROM dependencies
ARG VERSION=0
LABEL org.opencontainers.image.title="pagoda-router" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=package /opt/package /opt/package
# The root is read-only in our pods: whatever wants a home finds it in a volume.
# USER, because some libraries ask who the user is and fail where the number has no name.
ENV PATH=/opt/pagoda/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=pagoda
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "pagoda_router"]
