# What the three images stand on: a base image without what no program needs. It is copied, not deleted from,
# since a layer below keeps all that it ever had. No step needs a network, and those that run something run
# on the machine's own architecture: BUILDER is the same base for that.
ARG BASE=python:3.13-slim-trixie
ARG BUILDER=${BASE}
ARG BUILDPLATFORM=linux/amd64

FROM ${BASE} AS base

FROM --platform=${BUILDPLATFORM} ${BUILDER} AS slimmed
ARG PYTHON_MINOR=3.13
COPY --from=base / /base/
COPY slim.py /slim.py
RUN python3 /slim.py /base "${PYTHON_MINOR}"

FROM scratch
COPY --from=slimmed /base/ /
ENV PATH=/opt/derops/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONPATH=/opt/derops/lib \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GRPC_ENABLE_FORK_SUPPORT=0
USER 65532:65532
STOPSIGNAL SIGTERM
