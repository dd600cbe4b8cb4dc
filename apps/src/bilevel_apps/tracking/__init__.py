"""What a run sends to MLflow, which never stops it."""
