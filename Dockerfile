# Two images from one file: `docker build --target serving` (no torch) and `--target worker` (everything else: flows,
# Prefect's worker, the backend, trading, the emulator). Both run as user 10001 on a read-only root file system: only
# /var/lib/hrm (a volume) and /tmp are written. docs/adr/0039-shipping.md
FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 HOME=/var/lib/hrm HRM_PATHS__STATE_DIR=/var/lib/hrm \
    NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib PATH=/opt/venv/bin:$PATH
RUN groupadd --gid 10001 hrm && useradd --uid 10001 --gid 10001 --home-dir /var/lib/hrm --create-home hrm \
    && install -d -o hrm -g hrm /var/lib/hrm/models /var/lib/hrm/decisions /var/lib/hrm/keys /var/lib/hrm/keys/trusted
WORKDIR /opt/hrm

FROM base AS sources
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md cli.py prefect.yaml ./
COPY config config
COPY core core
COPY hrm hrm
COPY baselines baselines
COPY trading trading
COPY delivery delivery
COPY serving serving
COPY backend backend
COPY flows flows
COPY benchmarks benchmarks
COPY tests/fyers_emulator tests/fyers_emulator

FROM sources AS serving-built
RUN pip install -c constraints.txt '.[serving,postgres]'

FROM sources AS worker-built
RUN pip install "torch==2.13.0" -c constraints.txt && pip install -c constraints.txt '.[flows,kubernetes,postgres]'

FROM base AS serving
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hrm-serving" org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.description="HRM inference service" org.opencontainers.image.licenses="Proprietary"
COPY --from=serving-built /opt/venv /opt/venv
USER 10001:10001
ENV HRM_SERVING__HOST=0.0.0.0
EXPOSE 8100
VOLUME /var/lib/hrm
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8100/health/ready', timeout=2)"]
ENTRYPOINT ["hrm", "serve"]

FROM base AS worker
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hrm-worker" org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.description="HRM flows, backend and trading" org.opencontainers.image.licenses="Proprietary"
COPY --from=worker-built /opt/venv /opt/venv
# Deployments name files under HRM_ROOT: a worker runs flows from there.
COPY --from=sources /opt/hrm /opt/hrm
USER 10001:10001
ENV HRM_ROOT=/opt/hrm
VOLUME /var/lib/hrm
# What it runs differs: each service of deploy/compose.yaml has the check that fits its command.
HEALTHCHECK NONE
ENTRYPOINT ["hrm"]
CMD ["--help"]
