# One image for every process: `docker run embedmill api`, `… worker`, `… scheduler`, `… migrate`.
# It is built from a checkout and stays one: migrations lie beside the code in /app.

FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /app
# Dependencies first: this layer is built again only when they change.
COPY pyproject.toml README.md LICENSE ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && /opt/venv/bin/pip install --requirement /tmp/requirements.txt
COPY alembic ./alembic
COPY models ./models
COPY providers ./providers
COPY engine ./engine
COPY api ./api
COPY workers ./workers
COPY cli ./cli
RUN /opt/venv/bin/pip install --no-deps --editable . && python -m compileall -q .

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
