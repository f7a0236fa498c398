"""seq-JEPA's model, as its paper states it (Ghaemi et al., NeurIPS 2025), to be trained by `training`."""

import math
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

Conditioning = Literal["both", "none", "aggregator", "predictor"]


class Layer(nn.Module):
    """A transformer layer whose norms come after the sums."""

    def __init__(self, width: int, heads: int, feedforward_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, feedforward_width), nn.Linear(feedforward_width, width)
        self.norm_of_attention, self.norm_of_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm_of_attention(tokens + self.attention(tokens))
        return self.norm_of_feedforward(tokens + self.narrow(self.widen(tokens).relu()))

    def attention(self, tokens: Tensor) -> Tensor:
        """softmax(Q K^T / sqrt(d)) V per head of width d."""
        batch, length, width = tokens.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (map_(tokens).view(split) for map_ in (self.query, self.key, self.value))
        scores = torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(split[-1])
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), value)
        return self.output(mixed.reshape(batch, length, width))


class SeqJEPA(nn.Module):
    """Predicts the features of a view from the views before it and the actions between them.

    Args:
        encoder: maps N images to (N, features); the target's starts as its copy.
        conditioning: who is told actions: the aggregator the steps between observed views, the predictor the last.
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        action_size: int,
        action_width: int = 128,
        layers: int = 3,
        heads: int = 4,
        feedforward_width: int = 2560,
        hidden_width: int = 1024,
        conditioning: Conditioning = "both",
    ) -> None:
        super().__init__()
        self.aggregator_is_told = conditioning in ("both", "aggregator")
        self.predictor_is_told = conditioning in ("both", "predictor")
        width = features + action_width * self.aggregator_is_told
        self.encoder = encoder
        self.target_encoder = deepcopy(encoder).requires_grad_(False)
        self.action_embedding = nn.Linear(action_size, action_width, bias=False)
        self.action_norm = nn.BatchNorm1d(action_width, affine=False)
        self.token = nn.Parameter(torch.zeros(1, 1, width))  # decays, as what has two dimensions and more
        self.layers = nn.ModuleList(Layer(width, heads, feedforward_width) for _ in range(layers))
        self.last_norm = nn.LayerNorm(width)
        self.predictor = nn.Sequential(
            nn.Linear(width + action_width * self.predictor_is_told, hidden_width, bias=False),
            nn.BatchNorm1d(hidden_width),
            nn.ReLU(),
            nn.Linear(hidden_width, features),
        )

    def forward(self, views: Tensor, actions: Tensor) -> Tensor:
        """The loss.

        Args:
            views: (B, M + 1, C, H, W), the last to be predicted.
            actions: (B, M, k), action i from view i to view i + 1.
        """
        embedded = self.action_norm(self.action_embedding(actions.flatten(0, 1))).unflatten(0, actions.shape[:2])
        tokens = self.encoder(views[:, :-1].flatten(0, 1)).unflatten(0, actions.shape[:2])
        if self.aggregator_is_told:
            to_next = torch.cat([embedded[:, :-1], torch.zeros_like(embedded[:, -1:])], dim=1)
            tokens = torch.cat([tokens, to_next], dim=2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        aggregate = self.last_norm(tokens)[:, 0]
        given = torch.cat([aggregate, embedded[:, -1]], dim=1) if self.predictor_is_told else aggregate
        predicted = self.predictor(given)
        with torch.no_grad():
            target = self.target_encoder(views[:, -1])
        cosines = (predicted * target).sum(dim=1) / (predicted.norm(dim=1) * target.norm(dim=1))
        return 1 - cosines.mean()
