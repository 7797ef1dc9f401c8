"""The held-out losses of the model that is exported."""

from lightning import Callback, LightningModule, Trainer

from inscp.model.module import InsCPModule


class LastValidation(Callback):
    """Measures the held-out sets when the training has ended, unless a validation followed its last step.

    There is none if `val_check_interval` does not divide the run, or if a run resumes from the checkpoint of its last
    step.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InsCPModule)
        if pl_module.held_out_step == trainer.global_step:
            return
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = trainer.global_step - 1  # the step under which Lightning logs, from 0
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True
