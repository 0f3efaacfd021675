"""What can be exported and imported, by the names that a command line has for it. No torch here."""

from typing import Literal

ExportFormat = Literal["gguf"]
ImportFormat = Literal["hf"]
GgufType = Literal["f32", "bf16", "q8_0"]
"""How a GGUF file holds its matrices."""
