"""Operations that cost no multiply-accumulate of a layer, so that all others can be reported."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

# Neither point-wise nor a view by torch's own tags: reductions, normalisation, pooling,
# resampling by fixed weights, losses, random numbers, moving and comparing data.
_FREE = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d
    _adaptive_avg_pool3d_backward _assert_async _assert_scalar _batch_norm_no_update
    _batch_norm_with_update _batch_norm_with_update_functional _conj_physical _copy_from
    _copy_from_and_resize _cumsum_cpu _embedding_bag _embedding_bag_dense_backward
    _embedding_bag_forward_only _embedding_bag_per_sample_weights_backward _foreach_copy_
    _fused_dropout _fused_rms_norm _fused_rms_norm_backward _index_put_impl_ _local_scalar_dense
    _log_softmax _log_softmax_backward_data _masked_softmax _masked_softmax_backward
    _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _nested_tensor_from_mask _pack_padded_sequence
    _pack_padded_sequence_backward _pad_packed_sequence _prelu_kernel
    _prelu_kernel_backward _safe_softmax _softmax _softmax_backward_data _stack _to_copy
    _to_dense _unique2 _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate _unsafe_view _upsample_bicubic2d_aa
    _upsample_bicubic2d_aa_backward _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _weight_norm_interface _weight_norm_interface_backward adaptive_max_pool2d
    adaptive_max_pool2d_backward adaptive_max_pool3d all amax amin aminmax any arange argmax
    argmin argsort avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward
    batch_norm_backward bernoulli binary_cross_entropy binary_cross_entropy_backward bincount
    bucketize cat cauchy channel_shuffle clone col2im constant_pad_nd copy count_nonzero cross
    cummax cummin cumprod cumsum dequantize diag_embed diagonal_backward diagonal_scatter
    dropout embedding embedding_dense_backward embedding_renorm empty_like equal expand_copy
    exponential eye fake_quantize_per_channel_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask fill flip floor_divide fractional_max_pool2d
    fractional_max_pool3d full_like gather geometric glu glu_backward glu_jvp hardtanh histc
    huber_loss im2col index index_add index_copy index_fill index_put index_reduce index_select
    is_same_size isin isnan item kthvalue lift lift_fresh_copy linalg_vector_norm log_normal
    log_sigmoid_backward log_sigmoid_forward logcumsumexp logsumexp masked_scatter
    masked_scatter_backward masked_select max max_pool2d max_pool2d_with_indices
    max_pool2d_with_indices_backward max_pool3d_with_indices max_pool3d_with_indices_backward
    max_unpool2d max_unpool3d mean median min mish_backward mkldnn_max_pool2d mode mse_loss
    mse_loss_backward multi_margin_loss multilabel_margin_loss multinomial nan_to_num nanmedian
    nansum native_batch_norm native_batch_norm_backward native_channel_shuffle native_dropout
    native_dropout_backward native_group_norm native_group_norm_backward native_layer_norm
    native_layer_norm_backward native_norm new_empty new_empty_strided new_full new_ones
    new_zeros nll_loss2d_backward nll_loss2d_forward nll_loss_backward nll_loss_forward nonzero
    nonzero_static norm normal normal_functional one_hot ones_like pad pixel_shuffle
    pixel_unshuffle prod put quantile quantize_per_channel quantize_per_tensor
    quantize_per_tensor_dynamic rand_like randint_like randn_like random randperm record_stream
    reflection_pad1d reflection_pad1d_backward reflection_pad2d reflection_pad2d_backward
    reflection_pad3d reflection_pad3d_backward renorm repeat repeat_interleave replication_pad1d
    replication_pad1d_backward replication_pad2d replication_pad2d_backward replication_pad3d
    replication_pad3d_backward resize resize_ roll rot90 rrelu_with_noise scalar_tensor scatter
    scatter_add scatter_reduce searchsorted segment_reduce select_backward select_scatter set_
    slice_backward slice_scatter smooth_l1_loss smooth_l1_loss_backward soft_margin_loss sort
    split_with_sizes_copy stack std std_mean sum take topk trace tril tril_indices triu
    triu_indices unfold_backward unfold_copy uniform unique_consecutive unique_dim
    upsample_bicubic2d upsample_bicubic2d_backward upsample_bilinear2d
    upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward upsample_nearest1d
    upsample_nearest1d_backward upsample_nearest2d upsample_nearest2d_backward
    upsample_nearest3d upsample_nearest3d_backward upsample_trilinear3d
    upsample_trilinear3d_backward vander var var_mean zeros_like
    """.split()
)


@cache
def is_free(func: Any) -> bool:
    """Whether an OpOverload is point-wise, a view, makes a tensor of nothing, or only moves data.

    Operations of other libraries never are: what they do is not known.
    """
    tags = func.tags
    if func.is_view or torch.Tag.pointwise in tags or torch.Tag.inplace_view in tags:
        return True
    if not any("Tensor" in str(argument.type) for argument in func._schema.arguments):
        return True
    if func.namespace in ("prim", "profiler"):
        return True
    name = func._overloadpacket.__name__
    return func.namespace == "aten" and (name in _FREE or name.removesuffix("_") in _FREE)
