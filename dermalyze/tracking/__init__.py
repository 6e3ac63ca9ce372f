"""Where a run is recorded: files and MLflow."""
