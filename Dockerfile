# The page, for one machine's CPUs: docs/deploy.md. `make image-check` runs these steps without an engine.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
# PyPI's torch for Linux brings gigabytes of CUDA along; this index has it for CPUs alone
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --index-url "$TORCH_INDEX" "torch>=2.11,<2.15"
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY kernels kernels
COPY adaptive adaptive
RUN pip install ".[page]"

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 page \
    && install -d -o page -g page /cache /uploads
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib
ENV HOME=/home/page PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/page
VOLUME ["/cache", "/uploads"]
EXPOSE 7860
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["adaptive-window", "serve", "--host", "0.0.0.0", "--uploads", "/uploads"]
