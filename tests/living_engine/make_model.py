"""`python make_model.py FOLDER TEXT…`: tiny models with random weights, their tokenizer and two LoRA adapters, made offline.

    base/       a Llama
    repeating/  a Llama that says one token again and again
    hybrid/     a Gemma 2, with sliding windows in every second layer

Runs in the engine's environment, not in the project's. The tokenizer learns from the text files. Weights are drawn from a fixed seed.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2_000
HIDDEN = 64
HEADS = 2  # of 32: the smallest head that vLLM's attention for the CPU takes
LAYERS = 2
CONTEXT = 1_024
WINDOW = 72  # tokens, no multiple of the block size
LORA_RANK = 8
ADAPTERS = ("lora1", "lora2")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_tokenizer(folder: Path, texts: list[Path]) -> None:
    """Byte-level BPE, which can say anything."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in texts], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY, f"more text is needed for {VOCABULARY} tokens: {tokenizer.get_vocab_size()}"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_model(folder: Path, *, is_repeating: bool = False) -> None:
    """`is_repeating`: the input embeddings are the output's too, so that random weights find the last token the likeliest."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=is_repeating,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)


def make_hybrid_model(folder: Path) -> None:
    """By turns a layer that looks back over a window and one that looks back over all: two KV-cache groups."""
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2 * LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        query_pre_attn_scalar=HIDDEN // HEADS,
        max_position_embeddings=CONTEXT,
        sliding_window=WINDOW,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    Gemma2ForCausalLM(config).to(torch.float32).save_pretrained(folder)


def make_adapter(folder: Path) -> None:
    """In the layout of PEFT, which vLLM reads: low-rank additions to the query and value projections."""
    folder.mkdir(parents=True)
    weights = {}
    for layer in range(LAYERS):
        for projection in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{name}.lora_A.weight"] = 0.1 * torch.randn(LORA_RANK, HIDDEN)
            weights[f"{name}.lora_B.weight"] = 0.1 * torch.randn(HIDDEN, LORA_RANK)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": LORA_RANK, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "bias": "none", "base_model_name_or_path": "tiny"}), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets one folder for each model, and one for each adapter of base/")
    parser.add_argument("texts", type=Path, nargs="+", help="what the tokenizer learns from")
    asked = parser.parse_args()
    torch.manual_seed(1)
    for model in ("base", "repeating", "hybrid"):
        make_tokenizer(asked.folder / model, asked.texts)
    make_model(asked.folder / "base")
    make_model(asked.folder / "repeating", is_repeating=True)
    make_hybrid_model(asked.folder / "hybrid")
    for adapter in ADAPTERS:
        make_adapter(asked.folder / adapter)


if __name__ == "__main__":
    main()
