# Images of Debian's packages, for machines without a registry: tests and compose use them.
#
#   docker build --file images/services.Dockerfile --target redis --tag tandem-redis .

ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS redis
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*
USER 65532:65532
EXPOSE 6379
CMD ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp"]

FROM ${BASE} AS prometheus
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 65532 --group 65532 /prometheus
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/data"]
