# Two images from one file: `docker build --target serving` (no torch) and `--target worker` (everything).
FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 \
    HRM_PATHS__STATE_DIR=/var/lib/hrm
RUN useradd --system --create-home --home-dir /var/lib/hrm hrm
WORKDIR /opt/hrm
COPY pyproject.toml constraints.txt README.md cli.py ./
COPY config config
COPY core core
COPY hrm hrm
COPY baselines baselines
COPY trading trading
COPY serving serving
COPY backend backend
COPY flows flows
COPY benchmarks benchmarks

FROM base AS serving
RUN pip install -c constraints.txt '.[serving]'
USER hrm
EXPOSE 8100
HEALTHCHECK --interval=10s --timeout=2s CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8100/health/ready', timeout=1)"
ENTRYPOINT ["hrm", "serve"]

FROM base AS worker
RUN pip install "torch==2.13.0" -c constraints.txt && pip install -c constraints.txt '.[flows]'
COPY prefect.yaml ./
USER hrm
ENV HRM_ROOT=/opt/hrm
ENTRYPOINT ["hrm"]
CMD ["migrate"]
