"""Random tokenized texts, for networks that are fed with named tensors."""

from __future__ import annotations

import torch
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification, PreTrainedModel

from pdiff_hf.loops import seeded

WORDS, LENGTH, CLASSES = 40, 12, 3


def texts(count: int, seed: int = 0) -> BatchEncoding:
    """Random words, padded at the end, as a tokenizer returns them."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (count, 1), generator=generator)).long()
    return BatchEncoding(
        {"input_ids": torch.randint(1, WORDS, (count, LENGTH), generator=generator) * mask, "attention_mask": mask}
    )


def build_bert() -> PreTrainedModel:
    """A small classifier of them with the same weights whenever it is asked for, in eval mode."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        num_labels=CLASSES,
    )
    with seeded(0):
        return BertForSequenceClassification(config).eval()
