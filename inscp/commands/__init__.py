"""The commands, one a file with `run(command, arguments)` that is imported only when it is called, and their parts."""

COMMANDS = {
    "fit": "train, and end with a Hugging Face folder",
    "validate": "loss and perplexity of the held-out sets",
    "test": "as validate, under the names test/…",
    "inspect": "show exactly what the model will see",
    "prepare": "tag and pack a training's rows ahead of it, where no GPU waits for them",
    "score": "perplexity of every record under a model",
    "select": "choose records by perplexity, language, quality, duplicates, budget",
    "evaluate": "measure a model by the tasks of a configuration",
    "compare": "evaluations, item by item",
    "experiment": "run or report a whole study",
    "generate": "a model's own answers, to be replayed",
    "extend": "give a model more tokens for a language",
    "merge": "a model out of several, by arithmetic with their weights",
    "export": "turn a checkpoint into a Hugging Face folder",
    "chat": "talk to a model",
    "doctor": "what this machine can run, and whether a training fits",
    "track": "send MLflow what a training could not",
}
"""Their names, and what each is for."""
