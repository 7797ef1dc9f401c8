"""Logging of training and evaluation runs to MLflow."""
