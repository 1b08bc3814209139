# Train: recipes and data come in through /work, runs go out through it.
#
#   docker build -f docker/train.Dockerfile -t lorikeet-train .
#   docker build -f docker/train.Dockerfile -t lorikeet-train --build-arg DEVICE=cuda .
#   docker run --rm -v "$PWD:/work" -v lorikeet-cache:/cache lorikeet-train train examples/notes.yaml
#
# DEVICE=cuda takes torch's CUDA build; run it with --gpus all.
FROM python:3.12-slim

ARG DEVICE=cpu
ARG TORCH="torch>=2.13,<2.14"
ARG EXTRAS="parquet,hf,data,eval,tensorboard"
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# torch first: it is the largest layer, and changes least
RUN if [ "$DEVICE" = cuda ]; then pip install --no-cache-dir "$TORCH"; \
    else pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$TORCH"; fi

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY lorikeet ./lorikeet
RUN pip install --no-cache-dir ".[$EXTRAS]"

# files of a run belong to this user: build with --build-arg UID=$(id -u) for your own
ARG UID=1000
RUN useradd --create-home --uid "$UID" lorikeet && mkdir -p /cache /work && chown lorikeet /cache /work
USER lorikeet
ENV XDG_CACHE_HOME=/cache
WORKDIR /work
ENTRYPOINT ["lorikeet"]
CMD ["--help"]
