"""InstructionCP: continual pre-training of chat models on target-language text inside their own chat template."""

__version__ = "0.1.0"
