"""What happens alongside the training loop, one concern per file."""
