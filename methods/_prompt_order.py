"""The order in which prompts are taken: all of them in a new random order, again and again."""

import torch

__all__ = ["PromptOrder"]


class PromptOrder:
    """Numbers of prompts; `left` and the generator's state are all it takes to go on."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator
        self.left: list[int] = []
        """Prompts that this time round are still to come."""

    def take(self, wanted: int) -> list[int]:
        """The next prompts."""
        found: list[int] = []
        while len(found) < wanted:
            if not self.left:
                self.left = torch.randperm(self._count, generator=self._generator).tolist()
            taken = wanted - len(found)
            found += self.left[:taken]
            self.left = self.left[taken:]
        return found
