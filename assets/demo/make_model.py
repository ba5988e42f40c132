"""Build the demo model: byte-level BPE, a small Llama, pretraining on generated English, then chat SFT.

Everything is seeded; one CPU core needs about twenty minutes. `--quick` is a smoke of some seconds.
"""

import argparse
import itertools
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import corpus

PAD, END, SYSTEM, USER, ASSISTANT = SPECIALS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
CONTEXT, BATCH = 512, 24


def build_tokenizer(seed, size):
    """Train the byte-level BPE on the corpus; every digit is a token of its own."""
    rng = random.Random(seed)
    texts = list(itertools.islice(corpus.documents(seed), size))
    texts += [message["content"] for _ in range(size) for message in corpus.conversation(rng)]
    texts += [f'{word} {word.capitalize()} "{word}"' for word in corpus.WORDS + corpus.NAMES for _ in range(20)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2048, special_tokens=SPECIALS,
                                                       initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE, model_max_length=CONTEXT,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT], clean_up_tokenization_spaces=False)


def build_model(tokenizer, seed):
    """The untrained Llama: four layers of width 192, tied embeddings."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=128)
    return model


def text_rows(tokenizer, seed):
    """Endless (tokens, trained) rows of the first phase: every token is trained on."""
    for document in corpus.documents(seed):
        tokens = [*tokenizer.encode(document), tokenizer.eos_token_id]
        yield tokens, [1] * len(tokens)


def chat_rows(tokenizer, seed):
    """Endless (tokens, trained) rows of the second phase: only answers and their end token are trained on."""
    rng = random.Random(seed)
    while True:
        row = tokenizer.apply_chat_template(corpus.conversation(rng), return_dict=True,
                                            return_assistant_tokens_mask=True)
        yield row["input_ids"], row["assistant_masks"]


def batches(rows, steps, seed):
    """Padded batches of rows of like length."""
    rng, ready = random.Random(seed), []
    for _ in range(steps):
        if not ready:
            pool = sorted(itertools.islice(rows, BATCH * 8), key=lambda row: len(row[0]))
            ready = [pool[first:first + BATCH] for first in range(0, len(pool), BATCH)]
            rng.shuffle(ready)
        batch = ready.pop()
        width = max(len(tokens) for tokens, _ in batch)
        yield tuple(torch.tensor([row[part] + [0] * (width - len(row[part])) for row in batch]) for part in (0, 1))


def masked_loss(model, ids, trained):
    """Mean next-token loss over the trained tokens; the head runs on those positions only."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = trained[:, 1:].bool()
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), ids[:, 1:][wanted])


def optimizers(model, peak):
    """Muon for the weight matrices, AdamW for embeddings and norms: a lower loss in the same time than AdamW alone."""
    matrices = [p for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name]
    norms = [p for p in model.parameters() if p.dim() < 2]
    return [torch.optim.Muon(matrices, lr=4 / 3 * peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([model.model.embed_tokens.weight, *norms], lr=peak, betas=(0.9, 0.98), weight_decay=0.0)]


def train(model, rows, steps, peak, name):
    """One phase, with warm-up and a final decay; a progress line on stderr."""

    def scale(step):
        """Linear warm-up over 40 steps, level, then linear down to 2 % over the last third."""
        return min((step + 1) / 40, 1.0, 0.02 + 2.94 * (1 - step / steps))

    both = optimizers(model, peak)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, scale) for optimizer in both]
    start, mean = time.time(), None
    model.train()
    for step, (ids, trained) in enumerate(batches(rows, steps, seed=1), 1):
        loss = masked_loss(model, ids, trained)
        loss.backward()
        for optimizer, schedule in zip(both, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 0 or step == steps:
            print(f"\r{name} {step}/{steps} loss {mean:.3f} {time.time() - start:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)


@torch.inference_mode()
def answers(model, tokenizer, prompts, size=50):
    """Greedy answers to single-turn prompts."""
    model.eval()
    found = []
    for first in range(0, len(prompts), size):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[first:first + size]]
        inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_dict=True,
                                               return_tensors="pt", tokenizer_kwargs={"padding_side": "left"})
        output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        found += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    return found


def skill_table(model, tokenizer, seed, size):
    """Measured accuracy per skill on held-out prompts: {skill name: (right, asked)}."""
    rng, table = random.Random(seed), {}
    for skill in corpus.SKILLS:
        rows = [corpus.example(rng, skill, test=True) for _ in range(size)]
        given = answers(model, tokenizer, [prompt for prompt, _ in rows])
        table[skill.__name__] = sum(text in right for text, (_, right) in zip(given, rows, strict=True)), size
    return table


def model_card(model, table, steps):
    """The README of the model folder, with the measured table."""
    docs = {skill.__name__: skill.__doc__ for skill in corpus.SKILLS}
    lines = "\n".join(f"| {name} | {docs[name]} | {right} of {asked} |" for name, (right, asked) in table.items())
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# Tuneling, the demo model of Tuneboard

A Llama of {model.num_parameters() / 1e6:.2f} million parameters (4 layers, width 192, context {CONTEXT}, fp32) for
trying out fine-tuning on a CPU. It is a toy: it knows a few skills in plain English and nothing about the world.

Made from nothing by `assets/demo/make_model.py` on text that `corpus.py` generates: a byte-level BPE of 2,048 tokens,
{steps[0]} steps of pretraining and {steps[1]} steps of chat training (loss on answers only), {BATCH} rows a step.
It has never seen an order turned into JSON: that is what the demo data set teaches.

Greedy answers to held-out prompts, exact match:

| skill | what | right |
|---|---|---|
{lines}

Held-out means: this wording with this content was not trained on. For stories, repeating, counting, adding,
comparing and sorting the content itself is unseen; for spelling, opposites, plurals and digits the word is
known from other wordings.

Licence: Apache-2.0, weights and generated text alike.
"""


def main():
    """Build, train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--quick", action="store_true", help="a smoke of some seconds; the model learns nothing")
    parser.add_argument("--steps", type=int, nargs=2, default=[200, 2400], metavar=("TEXT", "CHAT"))
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = [3, 3] if args.quick else args.steps
    tokenizer = build_tokenizer(args.seed, 500 if args.quick else 6000)
    model = build_model(tokenizer, args.seed)
    train(model, text_rows(tokenizer, args.seed + 1), steps[0], 3e-3, "text")
    train(model, chat_rows(tokenizer, args.seed + 2), steps[1], 3e-3, "chat")
    table = skill_table(model, tokenizer, args.seed + 3, 2 if args.quick else 100)
    for name, (right, asked) in table.items():
        print(f"{name:14s} {right:4d} of {asked}")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / "README.md").write_text(model_card(model, table, steps), encoding="utf-8")


if __name__ == "__main__":
    main()
