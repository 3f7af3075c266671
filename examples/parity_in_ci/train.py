"""Trains the model on scikit-learn's digits; writes ``weights.safetensors`` and ``digits.npz``."""

from __future__ import annotations

import numpy as np
import torch
from model import build
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional

#: Images that are kept to measure the accuracy on.
HELD_BACK = 200
STEPS, BATCH = 1500, 64

torch.set_num_threads(1)
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
x, y = torch.from_numpy(images[HELD_BACK:]), torch.from_numpy(labels[HELD_BACK:])
model = build().train()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
for _ in range(STEPS):
    rows = torch.randint(len(x), (BATCH,))
    loss = functional.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
save_file(model.state_dict(), "weights.safetensors")
np.savez_compressed("digits.npz", image=images[:HELD_BACK], labels=labels[:HELD_BACK])
