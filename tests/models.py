"""A small model that real tokenizers and frontends load."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "Files are small, tokens are many."


def make_model(directory: Path) -> Path:
    """Write a model directory: nine metadata files, and things that are none."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 10, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    documents = {
        "config.json": config,
        "tokenizer_config.json": {"bos_token": "<|end|>", "eos_token": "<|end|>"},
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0},
        "special_tokens_map.json": {"eos_token": "<|end|>"},
        "vocab.json": tokenizer.get_vocab(),
    }
    for name, content in documents.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    (directory / "added_tokens.json").write_text("{}")
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "README.md").write_text("A model of nothing.")
    (directory / "model.safetensors").write_bytes(bytes(64))
    return directory
