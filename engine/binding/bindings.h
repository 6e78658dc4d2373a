// What JavaScript may call; addon.cpp lists it all. Names, arguments and meaning: src/engine/kernels.ts.
#pragma once
#include "call.h"

namespace attune {

using Binding = napi_value(Call& call);

// memory.cpp
Binding bind_alloc, bind_free, bind_view, bind_write;
// promises.cpp
Binding bind_read, bind_sync;
/// Prepares an environment (the main thread or a worker) for promises.
void open_promises(napi_env env);

// products.cpp
Binding bind_matmul, bind_matmul_input_grad, bind_matmul_weight_grad, bind_emulate_amx, bind_peak_flops;

// layers.cpp
Binding bind_embedding, bind_embedding_grad, bind_rms_norm, bind_rms_norm_grad, bind_rms_norm_weight_grad, bind_layer_norm,
    bind_layer_norm_grad, bind_layer_norm_weight_grad, bind_rope, bind_cross_entropy,
    bind_sample;

// attention.cpp
Binding bind_attention, bind_attention_grad;

// elements.cpp
Binding bind_fill, bind_copy, bind_convert, bind_quantize, bind_add, bind_scale, bind_mul, bind_add_bias, bind_bias_grad, bind_activation,
    bind_activation_grad, bind_gated, bind_gated_grad, bind_copy_columns,
    bind_dropout, bind_add_uniform, bind_gather_rows, bind_scatter_rows, bind_sum, bind_sum_squares;

// matrix.cpp
Binding bind_scale_rows, bind_scale_columns, bind_row_dots, bind_column_dots, bind_transpose, bind_square_root, bind_divide_sqrt, bind_svd;

// training.cpp
Binding bind_adamw, bind_adamw_8bit, bind_blend, bind_limit_rms, bind_lion;

// process.cpp
Binding bind_info, bind_stats, bind_reset_peak, bind_set_isa, bind_set_threads, bind_profile;

} // namespace attune
