"""What MLflow is told of trainings and evaluations, and how it gets there."""
