"""The sizes of a transformer and what one state costs in it: operations and kept activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from danceflow.models.layout import Kept, Stream, Tokens
from danceflow.train.optim import is_matrix

ATTENTION_BACKWARD = 2.5
"""Cost of attention's backward pass in forward passes: five matrix products for two."""

_ENDS = 2
"""Inputs of blocks that are kept in front of and behind them, when all else is computed again."""


@dataclass(frozen=True)
class Linear:
    """A linear or convolution module.

    Attributes:
        name: in the network.
        fan_in: inputs per row; of a convolution, those of a whole patch.
        fan_out: outputs per row.
        stream: whose rows it sees.
        block: the member of a list of blocks that it belongs to, if any.
        is_target: whether the family's adapters change it.
        is_convolution: whether its adapter's factors are convolutions too.
    """

    name: str
    fan_in: int
    fan_out: int
    stream: Stream
    block: str | None
    is_target: bool
    is_convolution: bool


@dataclass(frozen=True)
class Attention:
    """An attention module: its stream, its width in features and its block."""

    stream: Stream
    width: int
    block: str


@dataclass(frozen=True)
class Network:
    """The sizes of a transformer.

    Attributes:
        parameters: all of them.
        kept: what a forward pass keeps for the backward pass.
        buffers: elements of what is kept beside the parameters, such as a place table.
        matrix_parameters: those of two dimensions with both above 1, as Muon sorts them.
        linears: its linear and convolution modules.
        attentions: its attention modules.
        blocks: parameters of every repeated block.
    """

    parameters: int
    kept: Kept
    buffers: int
    matrix_parameters: int
    linears: tuple[Linear, ...]
    attentions: tuple[Attention, ...]
    blocks: Mapping[str, int]

    def forward_flops(self, tokens: Tokens, rank: int | None = None) -> float:
        """Return the floating-point operations of one forward pass of one state.

        Two per weight and row of every linear and convolution module, and 4 S^2 d for attention
        among S tokens of d features. Norms, activations and embeddings of places are left out.

        Args:
            tokens: of the state.
            rank: of an active adapter, if any.
        """
        return self._linear_flops(tokens, rank) + self.attention_flops(tokens)

    def training_flops(
        self, tokens: Tokens, rank: int | None = None, *, recomputed: bool = False
    ) -> float:
        """Return the floating-point operations of a forward and backward pass of one state.

        The backward pass takes the gradient by activations (as much as the forward pass) and by
        weights (as much again, but of an adapter only its own), and attention's, which costs
        ``ATTENTION_BACKWARD`` forward passes.

        Args:
            tokens: of the state.
            rank: of the trained adapter; ``None``: all weights are trained.
            recomputed: whether activations are computed again in the backward pass.
        """
        linear, attention = self._linear_flops(tokens, None), self.attention_flops(tokens)
        adapter = self.adapter_flops(tokens, rank)
        trained = linear if rank is None else 2 * adapter
        forward = linear + adapter + attention
        backward = linear + trained + ATTENTION_BACKWARD * attention
        return forward + backward + (forward if recomputed else 0.0)

    def adapter_flops(self, tokens: Tokens, rank: int | None) -> float:
        """Return those operations of one forward pass of one state that an adapter adds."""
        return self._linear_flops(tokens, rank) - self._linear_flops(tokens, None)

    def calls(self, rank: int | None = None) -> int:
        """Return how many modules one pass calls: linear, attention, and an adapter's factors."""
        factors = 0 if rank is None else 2 * sum(linear.is_target for linear in self.linears)
        return len(self.linears) + len(self.attentions) + factors

    def _linear_flops(self, tokens: Tokens, rank: int | None) -> float:
        total = 0
        for linear in self.linears:
            weights = linear.fan_in * linear.fan_out
            if rank is not None and linear.is_target:
                weights += rank * (linear.fan_in + linear.fan_out)
            total += 2 * weights * tokens.of(linear.stream)
        return float(total)

    def attention_flops(self, tokens: Tokens) -> float:
        """Return the operations of all attention of one forward pass of one state."""
        return float(sum(4 * a.width * tokens.pairs_of(a.stream) for a in self.attentions))

    def activation_bytes(
        self, tokens: Tokens, num_bytes: int, rank: int | None = None, *, recomputed: bool = False
    ) -> float:
        """Return what one state's forward pass keeps in memory for the backward pass, in bytes.

        Args:
            tokens: of the state.
            num_bytes: of a number in the network's dtype.
            rank: of the trained adapter; ``None``: all weights are trained.
            recomputed: whether only the inputs of the blocks are kept, and one block is computed
                again at a time.
        """
        if not recomputed:
            return self._kept_bytes(self.linears, tokens, num_bytes, rank)
        streams = {attention.block: attention for attention in reversed(self.attentions)}
        inputs = [a.width * tokens.of(a.stream) for a in streams.values()]
        again = max(
            self._kept_bytes(
                [linear for linear in self.linears if linear.block == block],
                tokens,
                num_bytes,
                rank,
            )
            for block in streams
        )
        return num_bytes * (sum(inputs) + _ENDS * max(inputs)) + again

    def _kept_bytes(
        self, linears: Sequence[Linear], tokens: Tokens, num_bytes: int, rank: int | None
    ) -> float:
        seen = [(tokens.of(li.stream), li) for li in linears if li.stream != "sample"]
        unit = sum(rows * (li.fan_in + li.fan_out) for rows, li in seen)
        if rank is None:
            return self.kept.whole * unit * num_bytes
        targets = [(rows, li) for rows, li in seen if li.is_target]
        factors = 4 * sum(rows * rank for rows, _ in targets)
        if num_bytes == 4:
            return self.kept.adapter * unit * num_bytes + factors
        copies = 4 * sum(rows * li.fan_in for rows, li in targets)
        return self.kept.half * unit * num_bytes + factors + copies

    @property
    def block_weights(self) -> tuple[int, int]:
        """Weights of the linear modules in blocks, which can have fewer bits, and their rows."""
        inside = self._in_blocks
        return sum(li.fan_in * li.fan_out for li in inside), sum(li.fan_out for li in inside)

    @property
    def block_modules(self) -> int:
        """How many linear modules in blocks there are, which can have fewer bits."""
        return len(self._in_blocks)

    @property
    def _in_blocks(self) -> list[Linear]:
        return [li for li in self.linears if li.block is not None and not li.is_convolution]

    def adapter_parameters(self, rank: int) -> int:
        """Return the parameters of a LoRA adapter of this rank on the family's targets."""
        return rank * sum(li.fan_in + li.fan_out for li in self.linears if li.is_target)

    def adapter_matrices(self, rank: int) -> int:
        """Return those of an adapter's parameters that are matrices, as Muon sorts them."""
        targets = (li for li in self.linears if li.is_target and not li.is_convolution)
        sides = (side for li in targets for side in (li.fan_in, li.fan_out))
        return sum(rank * side for side in sides if is_matrix((rank, side)))
