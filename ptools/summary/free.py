"""Operations that cost no multiply-accumulate of a layer, so that all others can be reported."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch._ops import HigherOrderOperator

# Neither point-wise nor a view by torch's own tags: reductions, normalisation, pooling,
# resampling by fixed weights, losses, random numbers, moving and comparing data.
_FREE = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _aminmax _assert_async _assert_scalar
    _assert_tensor_metadata _batch_norm_no_update _batch_norm_with_update
    _batch_norm_with_update_functional _chunk_cat _conj_physical _copy_from
    _copy_from_and_resize _cumsum_cpu _embedding_bag _embedding_bag_dense_backward
    _embedding_bag_forward_only _embedding_bag_per_sample_weights_backward _foreach_copy_
    _fused_dropout _fused_rms_norm _index_put_impl_ _is_all_true _is_any_true
    _jagged_to_padded_dense_forward _linalg_check_errors _local_scalar_dense _log_softmax
    _log_softmax_backward_data
    _masked_scale _masked_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _nested_from_padded _nested_tensor_from_mask
    _nested_tensor_softmax_with_shape _pack_padded_sequence _pad_packed_sequence
    _padded_dense_to_jagged_forward _pin_memory _prelu_kernel _safe_softmax _sample_dirichlet
    _softmax _softmax_backward_data _stack _standard_gamma _to_copy _to_dense _unique2
    _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate
    _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm_interface
    adaptive_max_pool2d adaptive_max_pool3d all allclose amax amin aminmax any arange argmax
    argmin argsort avg_pool2d avg_pool3d batch_norm_backward batch_norm_elemt
    batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats bernoulli
    binary_cross_entropy binary_cross_entropy_with_logits bincount binomial block_diag bucketize
    cat cauchy channel_shuffle clone col2im complex constant_pad_nd copy count_nonzero cross
    cudnn_batch_norm cummax cummin cumprod cumsum dequantize detach diag_embed diagonal
    diagonal_scatter dropout elu embedding embedding_dense_backward embedding_renorm empty_like
    equal expand_copy exponential eye fake_quantize_per_channel_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask fill flip floor_divide fractional_max_pool2d
    fractional_max_pool3d full_like gather gelu geometric glu glu_jvp hardshrink hardsigmoid
    hardswish hardtanh histc huber_loss im2col index index_add index_fill index_put index_reduce
    index_select indices int_repr is_same_size isin isnan item kthvalue leaky_relu lift
    lift_fresh_copy linalg_vector_norm linspace log_normal log_sigmoid_backward
    log_sigmoid_forward logcumsumexp logspace logsumexp masked_fill masked_scatter masked_select
    max max_pool2d max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d
    mean median min miopen_batch_norm mish_backward mkldnn_max_pool2d mode mse_loss
    multi_margin_loss multilabel_margin_loss multinomial nan_to_num nanmedian nansum
    native_batch_norm native_channel_shuffle native_dropout native_group_norm native_layer_norm
    native_norm new_empty new_empty_strided new_full new_ones new_zeros nll_loss2d_backward
    nll_loss2d_forward nll_loss_backward nll_loss_forward nonzero nonzero_static norm normal
    normal_functional one_hot ones_like pad pixel_shuffle pixel_unshuffle poisson polar prod put
    quantile quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic
    quantized_batch_norm quantized_max_pool2d rand_like randint_like randn_like random randperm
    record_stream reflection_pad1d reflection_pad2d reflection_pad3d renorm repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize roll rot90
    rrelu_with_noise rrelu_with_noise_functional rsub scalar_tensor scatter scatter_add
    scatter_reduce searchsorted segment_reduce select select_scatter set slice slice_scatter
    smooth_l1_loss soft_margin_loss softplus softshrink sort split_with_sizes_copy stack std
    std_mean sum take threshold to_padded_tensor topk trace tril tril_indices triu triu_indices
    unfold uniform unique_consecutive unique_dim unique_dim_consecutive unsafe_split
    unsafe_split_with_sizes upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d values vander
    var var_mean zero zeros_like
    """.split()
)


@cache
def is_free(func: Any) -> bool:
    """Whether an OpOverload is point-wise, a view, makes a tensor of nothing, or only moves data.

    Operations of other libraries never are: what they do is not known.
    """
    if isinstance(func, HigherOrderOperator):
        return False
    if _is_tagged(func):
        return True
    if not any("Tensor" in str(argument.type) for argument in func._schema.arguments):
        return True
    if func.namespace in ("prim", "profiler"):
        return True
    name = func._overloadpacket.__name__
    return func.namespace == "aten" and (name in _FREE or _is_free_stem(name))


def _is_free_stem(name: str) -> bool:
    """In-place, backward, copying and for-each forms cost no more than what they are forms of."""
    stem = name.removesuffix("_").removesuffix("_backward").removesuffix("_copy")
    stem = stem.removeprefix("_foreach_")
    packet = getattr(torch.ops.aten, stem, None)
    if stem in _FREE or packet is None or stem == name:
        return stem in _FREE
    return any(_is_tagged(getattr(packet, overload)) for overload in packet.overloads())


def _is_tagged(func: Any) -> bool:
    wanted = (torch.Tag.pointwise, torch.Tag.inplace_view)
    return func.is_view or any(tag in func.tags for tag in wanted)
