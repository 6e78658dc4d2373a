// All kernels, for one tier. Each isa/*.cpp sets ATTUNE_TIER to its name and includes this file; the build script gives it its flags.
// Everything in here is static, and only C headers are used: an inline function with external linkage that is compiled here under
// AVX flags could be the copy that the linker keeps for all tiers.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../dtype.h"
#include "../kernel_table.h"
#include "../kernels/activation.h"
#include "../pool.h"

namespace attune {
namespace ATTUNE_TIER {

#include "../kernels/vector.inl"

#include "../kernels/quant.inl"
#include "../kernels/quantize.inl"

#include "../kernels/philox.inl"

#include "../kernels/attention.inl"
#include "../kernels/gemm.inl"

#include "../kernels/activation.inl"
#include "../kernels/adamw.inl"
#include "../kernels/columns.inl"
#include "../kernels/convert.inl"
#include "../kernels/cross_entropy.inl"
#include "../kernels/descent.inl"
#include "../kernels/dropout.inl"
#include "../kernels/noise.inl"
#include "../kernels/elements.inl"
#include "../kernels/embedding.inl"
#include "../kernels/reduce.inl"

#include "../kernels/layer_norm.inl"
#include "../kernels/matrix.inl"
#include "../kernels/rms_norm.inl"
#include "../kernels/rope.inl"
#include "../kernels/sample.inl"
#include "../kernels/svd.inl"

extern const KernelTable table; // constexpr alone would make it local; constexpr, so that nothing of this tier runs at load
constexpr KernelTable table = {
    gemm_kernels,
    attention_kernels,
    quant_kernels,
    {embedding, scatter_rows, rms_norm, rms_norm_grad, rms_norm_weight_grad, layer_norm, layer_norm_grad, layer_norm_weight_grad,
     copy_columns, rope, cross_entropy, sample, add_bias, bias_grad},
    {fill, copy, convert, add, scale, mul, activation, activation_grad, gated, gated_grad, dropout, add_uniform, sum, sum_squares},
    {adamw, adamw_8bit, blend, limit_rms, lion},
    {scale_rows, scale_columns, row_dots, column_dots, transpose, square_root, divide_sqrt, svd},
};

} // namespace ATTUNE_TIER
} // namespace attune
