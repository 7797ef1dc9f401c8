"""What happens beside the training loop, one thing a file."""
