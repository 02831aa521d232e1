# docker build -t gmm-anomaly .
# docker run --rm --gpus all -v "$PWD:/data" gmm-anomaly predict photo.jpg --out scored
#
# The packages bring CUDA's libraries; the image adds what the driver of the host needs.
FROM nvidia/cuda:12.6.3-base-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Whose files the mounted folder gets: --build-arg UID=$(id -u).
ARG UID=1000
RUN (userdel --remove ubuntu || true) && useradd --create-home --uid "$UID" user \
    && install --directory --owner user /project /data
USER user
WORKDIR /project

COPY --chown=user Makefile pyproject.toml setup.py constraints.txt README.md LICENSE train_net.py ./
COPY --chown=user tools tools
COPY --chown=user datasets/*.py datasets/
COPY --chown=user configs configs
COPY --chown=user gmm_anomaly gmm_anomaly
RUN make setup PYTHON=python3 && rm -rf ~/.cache

ENV PATH=/project/.venv/bin:$PATH
WORKDIR /data
ENTRYPOINT ["gmm-anomaly"]
