"""What is logged to MLflow of trainings and evaluations, and how it gets there."""
