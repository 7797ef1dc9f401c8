"""The commands, one per file with `run(command, arguments)`, imported only when called, and their common parts."""

COMMANDS = {
    "fit": "train a model and export it as a Hugging Face folder",
    "validate": "measure loss and perplexity on the held-out sets",
    "test": "like validate, but log the metrics as test/…",
    "inspect": "show exactly what the model will see",
    "prepare": "tag and pack the training data in advance, without a GPU waiting",
    "score": "compute the perplexity of every record under a model",
    "select": "choose records by perplexity, language, quality, duplicates, budget",
    "evaluate": "evaluate a model on the tasks of a configuration",
    "compare": "compare evaluations item by item",
    "experiment": "run or report a whole study, or keep its results",
    "generate": "generate a model's own answers, for replay",
    "extend": "add tokens for a language to a model's vocabulary",
    "merge": "merge the weights of several models",
    "export": "turn a checkpoint into a Hugging Face folder",
    "chat": "chat with a model in the terminal",
    "doctor": "check what this machine can run and, with --config, whether a training run fits",
    "track": "upload tracking data that a run could not send to MLflow",
}
"""Name of each command -> its purpose."""
