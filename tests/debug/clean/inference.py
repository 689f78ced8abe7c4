"""Inference only: no gradient, masks of -inf, a beam that starts at -inf, top-k and sampling."""

import torch
from torch import nn

torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
head = nn.Linear(8, 12).eval()
embed = nn.Embedding(12, 8)
with torch.inference_mode():
    tokens, scores = torch.zeros(3, 1, dtype=torch.long), torch.full((3,), float("-inf"))
    scores[0] = 0
    for _ in range(5):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits = head(layer(embed(tokens), src_mask=mask))[:, -1]
        least = logits.topk(5).values[:, -1:]
        logits[logits < least] = float("-inf")
        total = scores[:, None] + logits.log_softmax(-1)
        scores, chosen = total.flatten().topk(3)
        tokens = torch.cat([tokens[chosen // 12], (chosen % 12)[:, None]], 1)
        drawn = torch.multinomial(logits.softmax(-1), 1)
        print(scores[0].item().hex(), drawn.flatten().tolist())
