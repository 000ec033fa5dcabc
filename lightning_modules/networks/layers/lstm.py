"""An LSTM layer that compiles and exports as plain products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LSTM(nn.Module):
    """LSTM of one layer, with parameters, names and start of ``torch.nn.LSTM(dim, dim, batch_first=True)``.

    torch.compile refuses torch's module. On a CPU the values come from the operator below it, elsewhere and where a
    graph is made, from plain products step by step.

    Shapes: S sequences of T steps: inputs (S, T, R), hidden and cell (S, R); returns (S, T, R) and the last two.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight_ih_l0, self.weight_hh_l0 = (nn.Parameter(torch.empty(4 * dim, dim)) for _ in range(2))
        self.bias_ih_l0, self.bias_hh_l0 = (nn.Parameter(torch.empty(4 * dim)) for _ in range(2))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if torch.compiler.is_compiling() or inputs.device.type != "cpu":
            return self._step_by_step(inputs, hidden, cell)
        weights: list[Tensor] = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        past = [hidden[None].contiguous(), cell[None].contiguous()]
        # Biases, one layer, no dropout, training, one direction, batch first.
        outputs, hidden, cell = torch.lstm(inputs, past, weights, True, 1, 0.0, self.training, False, True)
        return outputs, hidden[0], cell[0]

    def _step_by_step(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for step in inputs.unbind(1):
            gates = F.linear(step, self.weight_ih_l0, self.bias_ih_l0) + F.linear(
                hidden, self.weight_hh_l0, self.bias_hh_l0
            )
            write, keep, value, read = gates.chunk(4, dim=-1)
            cell = keep.sigmoid() * cell + write.sigmoid() * value.tanh()
            hidden = read.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), hidden, cell
