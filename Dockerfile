# One image for every process: `docker run embedmill api`, `… worker`, `… scheduler`, `… migrate`.
# It is built from a checkout and stays one: migrations lie beside the code in /app.

FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /app
# Dependencies first: this layer is built again only when they change. Each is the locked version with the locked hash.
COPY requirements-build.lock requirements.lock ./
RUN /opt/venv/bin/pip install --require-hashes --requirement requirements-build.lock \
    && VIRTUAL_ENV=/opt/venv /opt/venv/bin/uv pip install --no-cache --compile-bytecode --require-hashes --requirement requirements.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY alembic ./alembic
COPY models ./models
COPY providers ./providers
COPY engine ./engine
COPY api ./api
COPY workers ./workers
COPY cli ./cli
RUN VIRTUAL_ENV=/opt/venv /opt/venv/bin/uv pip install --no-deps --no-build-isolation --editable . \
    && /opt/venv/bin/pip uninstall --yes uv && python -m compileall -q .

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --home-dir /data --create-home --shell /usr/sbin/nologin embedmill
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 EMBEDMILL_DATA_DIR=/data
WORKDIR /data
USER 10001
VOLUME /data
EXPOSE 8080
# For the API, which is what the image runs when told nothing. Workers and schedulers listen nowhere: turn it off there.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["embedmill"]
CMD ["api", "--host", "0.0.0.0", "--port", "8080"]
