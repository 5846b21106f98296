"""Random tokenized texts, for networks that are fed with named tensors."""

from __future__ import annotations

import torch
from transformers import BatchEncoding

WORDS, LENGTH, CLASSES = 40, 12, 3


def texts(count: int, seed: int = 0) -> BatchEncoding:
    """Random words, padded at the end, as a tokenizer returns them."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (count, 1), generator=generator)).long()
    return BatchEncoding(
        {"input_ids": torch.randint(1, WORDS, (count, LENGTH), generator=generator) * mask, "attention_mask": mask}
    )
