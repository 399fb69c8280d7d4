# check=skip=InvalidDefaultArgInFrom
# The image of one service: gateway, stage-worker or status-store. It holds what that service needs, nothing else.
#   docker build --build-arg SERVICE=gateway .
ARG SERVICE

FROM python:3.13-slim AS python

# The service's dependencies, read from pyproject.toml in a stage of its own, so that any other change in that file (a
# linter's setting, another service's extra) does not install them again.
FROM python AS requirements
WORKDIR /src
COPY pyproject.toml ./
ARG SERVICE
RUN python -c "import sys, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*p['dependencies'], *p['optional-dependencies'][sys.argv[1]], sep='\n')" "$SERVICE" > requirements.txt

# Wheels only: a package that needs a compiler fails here, by name. pip's cache stays in the builder.
FROM python AS dependencies
WORKDIR /src
COPY constraints.txt ./
COPY --from=requirements /src/requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --root-user-action=ignore --prefix=/install --ignore-installed --only-binary=:all: \
        -c constraints.txt -r requirements.txt

# The contracts, the package that declarations of pipelines import, and the service's own code. setuptools is installed
# before the code is copied, so that a change of code needs no network.
FROM python AS contracts
WORKDIR /src
RUN --mount=type=cache,target=/root/.cache/pip pip install --root-user-action=ignore "setuptools>=77"
COPY pyproject.toml ./
COPY contracts contracts
COPY sdk sdk

FROM contracts AS code-gateway
COPY gateway gateway
COPY callbacks callbacks

FROM contracts AS code-stage-worker
COPY stage-workers stage-workers

FROM contracts AS code-status-store
COPY status-store status-store

# The README is empty, because no image shows it. The console scripts of the other services are deleted.
FROM code-${SERVICE} AS code
ARG SERVICE
RUN touch README.md \
    && pip install --root-user-action=ignore --prefix=/install --no-deps --no-build-isolation --no-cache-dir . \
    && find /install/bin -type f ! -name "heimdex-$SERVICE" -delete

FROM python AS installed
# A fixed uid, so that the owner of a mounted directory can be set to it.
RUN groupadd --gid 10001 heimdex \
    && useradd --uid 10001 --gid heimdex --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin heimdex
COPY --from=dependencies /install /usr/local
COPY --from=code /install /usr/local
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
STOPSIGNAL SIGTERM
USER 10001:10001

FROM installed AS gateway
# A container is reached through its published port, so the gateway listens on every interface, on the default port.
ENV HEIMDEX_HOST=0.0.0.0 HEIMDEX_PORT=8000
EXPOSE 8000
# ProxyHandler({}): a request to 127.0.0.1 must not go through a proxy that Docker configures for every container.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=60s --start-interval=1s \
    CMD ["python", "-c", "from urllib.request import ProxyHandler as P, build_opener as o; o(P({})).open('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["heimdex-gateway"]

# The process touches the health file every few seconds while it has the connections that it needs.
FROM installed AS with-health-file
ENV HEIMDEX_HEALTH_FILE=/tmp/heimdex-health
# Healthy: touched within the last 15 seconds. `find` costs less than starting Python.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=60s --start-interval=1s \
    CMD test -n "$(find "$HEIMDEX_HEALTH_FILE" -newermt '15 seconds ago')"

# One image serves every stage; the stage is the argument: docker run ... extracting.
FROM with-health-file AS stage-worker
ENTRYPOINT ["heimdex-stage-worker"]

FROM with-health-file AS status-store
ENTRYPOINT ["heimdex-status-store"]

FROM ${SERVICE}
