"""A slow and simple decoder, as the reference.

One sequence, no cache, one head at a time, softmax by hand.
"""

import torch
from torch import Tensor

from language_service.model.decoder import Decoder


def hidden_states(decoder: Decoder, embeddings_TD: Tensor, positions_T: Tensor) -> Tensor:
    """Return the normalised hidden states [T, D] of one sequence."""
    config = decoder.config
    tensors: dict[str, Tensor] = decoder.state_dict()
    hidden_TD = embeddings_TD
    for layer in range(config.num_layers):
        prefix = f"language_model.layers.{layer}."
        weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        x_TD = _norm(hidden_TD, weights["input_layernorm.weight"], decoder)
        hidden_TD = hidden_TD + _attention(decoder, weights, x_TD, positions_T)
        x_TD = _norm(hidden_TD, weights["post_attention_layernorm.weight"], decoder)
        gate_TM, up_TM = x_TD @ weights["mlp.w1.weight"].T, x_TD @ weights["mlp.w3.weight"].T
        hidden_TD = hidden_TD + (gate_TM / (1 + torch.exp(-gate_TM)) * up_TM) @ weights["mlp.w2.weight"].T
    return _norm(hidden_TD, tensors["language_model.norm.weight"], decoder)


def logits(decoder: Decoder, embeddings_TD: Tensor) -> Tensor:
    """Return logits [T, V] of one sequence from position 0."""
    tensors: dict[str, Tensor] = decoder.state_dict()
    head_VD = tensors.get("lm_head.weight", tensors["language_model.embed_tokens.weight"])
    hidden_TD = hidden_states(decoder, embeddings_TD, torch.arange(len(embeddings_TD)))
    return hidden_TD @ head_VD.T


def greedy(decoder: Decoder, embeddings_TD: Tensor, num_tokens: int) -> list[int]:
    """Return the greedy answer, up to end-of-sequence.

    Computes the whole sequence again for every token.
    """
    answer: list[int] = []
    while len(answer) < num_tokens:
        token = int(logits(decoder, embeddings_TD)[-1].argmax())
        if token in decoder.config.eos_token_ids:
            break
        answer.append(token)
        embeddings_TD = torch.cat([embeddings_TD, decoder.embed(torch.tensor([token]))])
    return answer


def _norm(x: Tensor, weight: Tensor, decoder: Decoder) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + decoder.config.norm_eps) * weight


def _attention(decoder: Decoder, weights: dict[str, Tensor], x_TD: Tensor, positions_T: Tensor) -> Tensor:
    config = decoder.config
    size, group = config.head_dim, config.num_heads // config.num_kv_heads

    def head(kind: str, index: int) -> Tensor:
        rows = slice(index * size, (index + 1) * size)
        out_TE = x_TD @ weights[f"self_attn.{kind}_proj.weight"][rows].T
        bias = weights.get(f"self_attn.{kind}_proj.bias")
        out_TE = out_TE if bias is None else out_TE + bias[rows]
        if kind == "v":
            return out_TE
        norm = weights.get(f"self_attn.{kind}_norm.weight")
        out_TE = out_TE if norm is None else _norm(out_TE, norm, decoder)
        return _rotate(out_TE, positions_T, config.rope_theta)

    outs = []
    hidden_TT = torch.ones(len(x_TD), len(x_TD)).triu(1).bool()
    for index in range(config.num_heads):
        q_TE, k_TE, v_TE = head("q", index), head("k", index // group), head("v", index // group)
        scores_TT = (q_TE @ k_TE.T / size**0.5).masked_fill(hidden_TT, float("-inf"))
        weights_TT = torch.exp(scores_TT - scores_TT.amax(-1, keepdim=True))
        outs.append(weights_TT / weights_TT.sum(-1, keepdim=True) @ v_TE)
    return torch.cat(outs, -1) @ weights["self_attn.o_proj.weight"].T


def _rotate(x_TE: Tensor, positions_T: Tensor, theta: float) -> Tensor:
    size = x_TE.shape[-1]
    out_TE = x_TE.clone()
    for pair in range(size // 2):
        angles_T = positions_T * theta ** (-2 * pair / size)
        first_T, second_T = x_TE[:, pair], x_TE[:, pair + size // 2]
        out_TE[:, pair] = first_T * angles_T.cos() - second_T * angles_T.sin()
        out_TE[:, pair + size // 2] = second_T * angles_T.cos() + first_T * angles_T.sin()
    return out_TE
