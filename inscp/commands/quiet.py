"""The output of libraries while a command runs."""

import logging
import os
import warnings


def quiet() -> None:
    """Silence what libraries report about themselves; warnings about this run remain."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("huggingface_hub", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*all_gather.*is deprecated.*")  # which Lightning calls
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # InsCPDataModule is
    warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load) in a single process.*")
    warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero.*")  # without held-out sets
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # torchmetrics has reduced over the ranks already
