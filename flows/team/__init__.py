"""The servers of a team on one machine: PostgreSQL, S3, MLflow, Prefect and a worker."""
