"""A tiny random model over bytes, and its losses one token at a time: what every batched figure must equal."""

VOCABULARY = 256


def make_model(tied=True, seed=0):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def plain_nll(model, prompt, response):
    """One sequence, one token at a time, in float64: what every batched figure must equal."""
    import torch

    ids = [*prompt, *response]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    first = max(len(prompt), 1)
    return [-logits[i - 1].log_softmax(-1)[ids[i]].item() for i in range(first, len(ids))]
