# Serve a run or a model over HTTP.
#
#   docker build -f docker/serve.Dockerfile -t lorikeet-serve .
#   docker build -f docker/serve.Dockerfile -t lorikeet-serve --build-arg DEVICE=cuda .
#   docker run --rm -p 8000:8000 -v "$PWD/runs:/work/runs:ro" -v lorikeet-cache:/cache lorikeet-serve serve runs/notes --host 0.0.0.0
#
# DEVICE=cuda takes torch's CUDA build; run it with --gpus all.
FROM python:3.12-slim

ARG DEVICE=cpu
ARG TORCH="torch>=2.13,<2.14"
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# torch first: it is the largest layer, and changes least
RUN if [ "$DEVICE" = cuda ]; then pip install --no-cache-dir "$TORCH"; \
    else pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$TORCH"; fi

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY lorikeet ./lorikeet
RUN pip install --no-cache-dir ".[serve,structured]"

# whoever gets into the server has no rights beyond the cache
RUN useradd --create-home --uid 1000 lorikeet && mkdir -p /cache /work && chown lorikeet /cache /work
USER lorikeet
ENV XDG_CACHE_HOME=/cache
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["lorikeet"]
CMD ["serve", "--help"]
