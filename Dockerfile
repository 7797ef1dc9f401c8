# Image for training on cloud GPUs. Build: docker build -t inscp .
# torch includes its own CUDA 13 libraries; the base image only adds the requirement of a driver that supports them.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv g++ python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 inscp \
    && mkdir -p /data /outputs /cache \
    && chown inscp /data /outputs /cache

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    INSCP_CACHE=/cache/inscp \
    HF_HOME=/cache/huggingface

# Locked dependencies first: they rarely change, so this layer stays cached.
COPY requirements.lock /src/
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --requirement /src/requirements.lock

COPY pyproject.toml README.md LICENSE /src/
COPY inscp /src/inscp
RUN pip install --no-cache-dir --no-deps /src
COPY configs /configs

USER inscp
WORKDIR /outputs
# Input texts; results and MLflow store; downloaded models and packed rows, kept between runs.
VOLUME ["/data", "/outputs", "/cache"]
ENTRYPOINT ["python", "-m", "inscp"]
CMD ["--help"]
