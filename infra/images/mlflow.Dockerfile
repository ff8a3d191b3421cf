# The tracking server: MLflow with logins, psycopg 3 and S3, which its official image does not have together, and
# backup.sh with pg_dump 15; 1.22 GB. BASE as in train.Dockerfile:
#   docker build --build-arg BASE=debian@sha256:… -f infra/images/mlflow.Dockerfile \
#       -t registry.example.org/dgunet-mlflow:3.17.2 .
ARG BASE
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash ca-certificates postgresql-client python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home mlflow \
    && install --directory --owner=10001 /backup
ENV PATH=/opt/venv/bin:$PATH \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1
COPY constraints.txt /tmp/constraints.txt
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "mlflow[auth]" boto3 s3fs "Flask-WTF==1.3.0" "WTForms==3.3.2" "psycopg[binary]==3.3.9"
COPY infra/mlflow/backup.sh /usr/local/bin/backup.sh
USER 10001
WORKDIR /tmp
EXPOSE 5000
ENTRYPOINT ["tini", "--"]
CMD ["mlflow", "server", "--help"]
