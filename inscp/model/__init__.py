"""The language model in training: loss, optimizer, LightningModule, export."""
