# docs/how-to/docker.md says how to build it, pin it and run it.
# Pin the base by its digest: --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:...
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY clair_cli ./clair_cli
# torch first and pinned; --build-arg TORCH=... takes another build of it, as a URL or a name
ARG TORCH=torch
RUN python -m venv /opt/clair \
 && /opt/clair/bin/pip install --no-cache-dir -c constraints.txt "${TORCH}" \
 && /opt/clair/bin/pip install --no-cache-dir -c constraints.txt ".[sign]"

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/clair /opt/clair
ENV PATH=/opt/clair/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /data
ENTRYPOINT ["clair"]
CMD ["--help"]
