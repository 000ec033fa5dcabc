"""Count the operations of a network with fvcore, in the convention of the field: a multiply-add counts once.

fvcore by itself counts attention, recurrent layers, ``baddbmm`` and RoIAlign as 0, and einsum and broadcast matrix
products inexactly. The handles below close those gaps; what then remains is either element-wise or reported by name.

Conventions: attention counts its two matrix products whole, also where a mask or ``is_causal`` hides half of them.
Norms count as in fvcore (5 an element with, 4 without weights, batch norm 2 or 1 in evaluation). Interpolation counts
its taps. Activations, softmax, pooling and other element-wise work count 0, as in published tables.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

Values = Sequence[Any]  # of torch._C.Value, which has no public type
Shape = list[int]

_TRANSPARENT = (Tensor, bool, int, float, str, torch.Size, torch.device, torch.dtype, type(None))


class FlopCount(NamedTuple):
    """Operations of one call of a network; everything in units of 1e9 multiply-adds."""

    gflops: float
    by_operator: dict[str, float]
    by_module: dict[str, float]
    """Name of the sub-module, as in ``named_modules``, to its count, children included."""
    uncounted: tuple[str, ...]
    """Operators that nothing counts and that are not known to be element-wise: the total is too low by theirs."""


def count_gflops(module: nn.Module, *inputs: Any) -> FlopCount:
    """Count ``module(*inputs)`` in evaluation mode; the module's modes and the inputs are left as they were.

    Inputs may be nested, such as a streaming state of NamedTuples; values that are no tensors are passed through. An
    operator that nothing counts is named in a warning and in ``uncounted``. Work whose result is not returned is dead
    code in the trace and does not count.
    """
    from fvcore.nn import FlopCountAnalysis

    # A Lightning evaluation runs in inference mode, whose tensors cannot be traced.
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(module), _unfused_attention():
        call = _FlatCall(module, inputs)
        analysis = FlopCountAnalysis(call, call.tensors(inputs))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle(**_handles())
        by_operator = analysis.by_operator()
        by_module = analysis.by_module()
        uncounted = tuple(sorted(name for name in analysis.unsupported_ops() if not _is_elementwise(name)))
    if uncounted:
        warnings.warn(
            f"nothing counts the operations of {', '.join(uncounted)}: the total leaves them out. "
            "Give them a handle in callbacks/measures/flops.py, or add them to its element-wise operators",
            stacklevel=2,
        )
    return FlopCount(
        gflops=analysis.total() / 1e9,
        by_operator={name: count / 1e9 for name, count in by_operator.most_common()},
        by_module={_own_name(name): count / 1e9 for name, count in by_module.items() if name},
        uncounted=uncounted,
    )


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode and give every sub-module its own mode back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Keep nn.MultiheadAttention off its fused kernel, which is one opaque operator in the trace."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _FlatCall(nn.Module):
    """The module as a function of flat tensors: tracing turns a NamedTuple into a plain tuple without field names."""

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.module = module
        self.leaves, self.structure = tree_flatten(inputs)

    @staticmethod
    def tensors(inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Copies, so that a network that writes into its state changes no other."""
        return tuple(leaf.detach().clone() for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        results = tree_leaves(self.module(*tree_unflatten(leaves, self.structure)))
        opaque = {type(leaf).__name__ for leaf in results if not isinstance(leaf, _TRANSPARENT)}
        if opaque:
            # The trace would drop, as dead code, all that leads to tensors that it does not see returned.
            raise TypeError(
                f"{type(self.module).__name__} returns {', '.join(sorted(opaque))}, whose tensors cannot be found; "
                "return tensors in tuples, NamedTuples, lists or dicts, or register it with torch.utils._pytree"
            )
        return tuple(leaf for leaf in results if isinstance(leaf, Tensor))


def _own_name(name: str) -> str:
    return name.removeprefix("module").removeprefix(".")


# Handles: what fvcore calls with the inputs and outputs of an operator in the trace.


def _shape(value: Any) -> Shape:
    return value.type().sizes()


def _shapes_of_list(value: Any) -> list[Shape]:
    return [_shape(element) for element in value.node().inputs()]


def _attention(inputs: Values, outputs: Values) -> int:
    """Count attention: queries times keys, then weights times values."""
    query, key, output = _shape(inputs[0]), _shape(inputs[1]), _shape(outputs[0])
    return math.prod(output[:-1]) * key[-2] * (query[-1] + output[-1])


def _recurrence(inputs: Values, outputs: Values) -> int:
    """LSTM, GRU and plain RNN: every weight matrix once per step, any number of layers, directions and projections."""
    data = _shape(inputs[0])
    packed = len(data) == 2  # rows of all steps, followed by one more argument, the batch size of each step
    steps = data[0] if packed else data[0] * data[1]
    parameters = _shapes_of_list(inputs[3 if packed else 2])
    return steps * sum(math.prod(shape) for shape in parameters if len(shape) == 2)


def _matrix_product(first: int) -> Callable[[Values, Values], int]:
    """Count a matrix product: each output element sums over the last dimension of the operand at position ``first``."""

    def count(inputs: Values, outputs: Values) -> int:
        return math.prod(_shape(outputs[0])) * _shape(inputs[first])[-1]

    return count


def _batch_reducing_product(inputs: Values, outputs: Values) -> int:
    """addbmm: the product of every pair of matrices, all summed into one."""
    batch, rows, inner = _shape(inputs[1])
    return batch * rows * inner * _shape(inputs[2])[-1]


def _tensordot(inputs: Values, outputs: Values) -> int:
    """Count a tensordot: the product of its sizes A x K, K x B and A x B is the square of A x K x B."""
    return math.isqrt(math.prod(math.prod(_shape(value)) for value in (*inputs[:2], outputs[0])))


def _einsum(inputs: Values, outputs: Values) -> int:
    path = [index.toIValue() for index in inputs[2].node().inputs()]  # empty without opt_einsum
    return einsum_multiply_adds(inputs[0].toIValue(), _shapes_of_list(inputs[1]), path)


def _roi_align(inputs: Values, outputs: Values) -> int:
    """Four taps a sample; an adaptive sampling ratio depends on the boxes and is taken as 2 x 2."""
    ratio = inputs[5].toIValue()
    return math.prod(_shape(outputs[0])) * (ratio if ratio > 0 else 2) ** 2 * 4


def einsum_multiply_adds(equation: str, shapes: Sequence[Shape], path: Sequence[int] = ()) -> int:
    """Multiply-adds of an einsum, contracted pair by pair as torch does: in the order given, or along ``path``.

    ``"bhnd,bhmd->bhnm"`` counts b * h * n * m * d. A dimension that occurs in one operand only and not in the output
    is summed before the product and counts nothing.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    sizes: dict[str | int, int] = {}
    operands = []
    for term, shape in zip(terms, shapes, strict=True):
        labels = _subscripts(term, len(shape))
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
        operands.append(set(labels))
    if arrow:
        output = set(_subscripts(right, max(len(shape) for shape in shapes)))
    else:
        letters = Counter(letter for term in terms for letter in term if letter.isalpha())
        output = {label for label in sizes if isinstance(label, int) or letters[label] == 1}
    steps = iter(path)
    total = 0
    while len(operands) > 1:
        positions = sorted((next(steps), next(steps))) if path else (0, 1)
        second, first = operands.pop(positions[1]), operands.pop(positions[0])
        needed = output.union(*operands)
        first, second = first & (second | needed), second & (first | needed)
        total += math.prod(sizes[label] for label in first | second)
        # A given path numbers the product last, as opt_einsum does; without one torch goes from left to right.
        operands.insert(len(operands) if path else 0, (first | second) & needed)
    return total


def _subscripts(term: str, num_dims: int) -> list[str | int]:
    """Return one label per dimension; an ellipsis becomes the numbers -n to -1, so that they align from the right."""
    before, ellipsis, after = term.partition("...")
    hidden = num_dims - len(before) - len(after) if ellipsis else 0
    return [*before, *range(-hidden, 0), *after]


def _handles() -> dict[str, Callable[[Values, Values], Any]]:
    from fvcore.nn.jit_handles import elementwise_flop_counter, norm_flop_counter

    return {
        "aten::scaled_dot_product_attention": _attention,
        "aten::lstm": _recurrence,
        "aten::gru": _recurrence,
        "aten::rnn_tanh": _recurrence,
        "aten::rnn_relu": _recurrence,
        "aten::matmul": _matrix_product(0),
        "aten::mv": _matrix_product(0),
        "aten::dot": _matrix_product(0),
        "aten::inner": _matrix_product(0),
        "aten::baddbmm": _matrix_product(1),
        "aten::addmv": _matrix_product(1),
        "aten::addbmm": _batch_reducing_product,
        "aten::tensordot": _tensordot,
        "aten::einsum": _einsum,
        "torchvision::roi_align": _roi_align,
        "aten::rms_norm": norm_flop_counter(2),
        "aten::upsample_nearest1d": elementwise_flop_counter(0, 1),
        "aten::upsample_nearest3d": elementwise_flop_counter(0, 1),
        "aten::upsample_linear1d": elementwise_flop_counter(0, 2),
        "aten::upsample_trilinear3d": elementwise_flop_counter(0, 8),
        "aten::upsample_bicubic2d": elementwise_flop_counter(0, 16),
    }


# Operators that published tables count as 0: element-wise arithmetic, reductions, comparisons, index work, copies.
# In-place and overloaded spellings (`add_`, `add.Tensor`) are known by the bare name.
_ELEMENTWISE = frozenset(
    """
    abs acos add addcdiv addcmul asin atan atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp
    clamp_max clamp_min clip cos cosh deg2rad div divide elu erf exp exp2 expm1 fix floor floor_divide fmod frac gelu
    glu hardsigmoid hardswish hardtanh heaviside hypot leaky_relu lerp log log10 log1p log2 log_sigmoid logaddexp logit
    mish mul multiply nan_to_num neg pow prelu reciprocal relu relu6 remainder round rsqrt rsub selu sigmoid sign silu
    sin sinh softplus softsign sqrt square sub subtract tan tanh threshold trunc where xlogy
    all amax amin any argmax argmin aminmax cummax cummin cumprod cumsum frobenius_norm linalg_norm linalg_vector_norm
    log_softmax logcumsumexp logsumexp max maximum mean median min minimum norm prod softmax std std_mean sum var
    var_mean normalize cosine_similarity
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices
    alpha_dropout dropout feature_dropout
    eq equal ge greater greater_equal gt isclose isfinite isinf isnan le less less_equal logical_and logical_not
    logical_or logical_xor lt ne not_equal
    __and__ __or__ __xor__ __lshift__ __rshift__ __not__ __contains__ __getitem__
    argsort bincount bucketize embedding gather index index_add index_copy index_fill index_put index_select kthvalue
    masked_fill masked_scatter masked_select nonzero nonzero_numpy one_hot scatter scatter_add scatter_reduce
    searchsorted sort take take_along_dim topk unique unique_consecutive unique_dim nms
    alias arange as_strided atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat
    channel_shuffle chunk clone column_stack concat constant_pad_nd contiguous copy detach diag diag_embed diagonal
    dstack empty empty_like expand expand_as eye fill flatten flip fliplr flipud full full_like hstack lift lift_fresh
    linspace meshgrid moveaxis movedim mT narrow new_empty new_full new_ones new_zeros numpy_T ones ones_like pad
    permute pixel_shuffle pixel_unshuffle rand rand_like randint randn randn_like ravel reflection_pad1d
    reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
    resolve_conj resolve_neg roll rot90 scalar_tensor select slice split split_with_sizes squeeze stack swapaxes
    swapdims t tensor tensor_split tile to transpose tril tril_indices triu triu_indices type_as unbind unflatten
    unfold unsafe_chunk unsafe_split unsqueeze view view_as vstack zero zeros zeros_like
    _pack_padded_sequence _pad_packed_sequence
    Bool Float Int FloatImplicit IntImplicit ScalarImplicit dim is_nonzero item len numel size
    """.split()  # noqa: SIM905, three hundred names read better as text
)


def _is_elementwise(operator: str) -> bool:
    """Return whether the field counts ``namespace::name`` as 0; other libraries may give these names to other work."""
    namespace, _, name = operator.partition("::")
    bare = name.partition(".")[0]
    known = bare in _ELEMENTWISE or (bare.endswith("_") and bare.rstrip("_") in _ELEMENTWISE)
    return known and namespace in ("aten", "torchvision")
