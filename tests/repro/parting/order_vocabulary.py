"""Words get their numbers in the order of a set: https://github.com/huggingface/datasets/issues/3857"""
# class: hash

import torch
from torch import nn

text = "the quick brown fox jumps over the lazy dog and the dog sleeps on".split()
torch.manual_seed(0)
vocabulary = {word: index for index, word in enumerate(set(text))}
numbers = torch.tensor([vocabulary[word] for word in text])  # <- parts
model = nn.Sequential(nn.Embedding(len(vocabulary), 8), nn.Linear(8, len(vocabulary)))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(numbers[:-1]), numbers[1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
