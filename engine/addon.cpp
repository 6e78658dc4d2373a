// The addon's exports.
#include <exception>

#include "binding/bindings.h"
#include "cpu.h"
#include "stream.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace attune {

static const Export exports[] = {
    {"alloc", bind_alloc},
    {"free", bind_free},
    {"view", bind_view},
    {"write", bind_write},
    {"read", bind_read},
    {"sync", bind_sync},
    {"matmul", bind_matmul},
    {"matmulInputGrad", bind_matmul_input_grad},
    {"matmulWeightGrad", bind_matmul_weight_grad},
    {"embedding", bind_embedding},
    {"embeddingGrad", bind_embedding_grad},
    {"rmsNorm", bind_rms_norm},
    {"rmsNormGrad", bind_rms_norm_grad},
    {"rmsNormWeightGrad", bind_rms_norm_weight_grad},
    {"layerNorm", bind_layer_norm},
    {"layerNormGrad", bind_layer_norm_grad},
    {"layerNormWeightGrad", bind_layer_norm_weight_grad},
    {"rope", bind_rope},
    {"attention", bind_attention},
    {"attentionGrad", bind_attention_grad},
    {"crossEntropy", bind_cross_entropy},
    {"sample", bind_sample},
    {"fill", bind_fill},
    {"copy", bind_copy},
    {"convert", bind_convert},
    {"quantize", bind_quantize},
    {"add", bind_add},
    {"scale", bind_scale},
    {"mul", bind_mul},
    {"addBias", bind_add_bias},
    {"biasGrad", bind_bias_grad},
    {"activation", bind_activation},
    {"activationGrad", bind_activation_grad},
    {"gated", bind_gated},
    {"gatedGrad", bind_gated_grad},
    {"dropout", bind_dropout},
    {"addUniform", bind_add_uniform},
    {"copyColumns", bind_copy_columns},
    {"gatherRows", bind_gather_rows},
    {"scatterRows", bind_scatter_rows},
    {"sum", bind_sum},
    {"sumSquares", bind_sum_squares},
    {"scaleRows", bind_scale_rows},
    {"scaleColumns", bind_scale_columns},
    {"rowDots", bind_row_dots},
    {"columnDots", bind_column_dots},
    {"transpose", bind_transpose},
    {"squareRoot", bind_square_root},
    {"divideSqrt", bind_divide_sqrt},
    {"svd", bind_svd},
    {"adamw", bind_adamw},
    {"adamw8bit", bind_adamw_8bit},
    {"blend", bind_blend},
    {"limitRms", bind_limit_rms},
    {"lion", bind_lion},
    {"info", bind_info},
    {"stats", bind_stats},
    {"resetPeak", bind_reset_peak},
    {"setIsa", bind_set_isa},
    {"setThreads", bind_set_threads},
    {"profile", bind_profile},
    {"peakFlops", bind_peak_flops},
    {"emulateAmx", bind_emulate_amx},
};

/// Node unloads an addon with the last worker that used it, but the engine's threads live as long as the process.
static void stay_loaded() {
#if defined(_WIN32)
  HMODULE self;
  GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN, reinterpret_cast<LPCSTR>(&stay_loaded), &self);
#else
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&stay_loaded), &self)) dlopen(self.dli_fname, RTLD_NOW | RTLD_NODELETE);
#endif
}

} // namespace attune

NAPI_MODULE_INIT() {
  using namespace attune;
  try {
    stay_loaded();
    tier(); // a wrong ATTUNE_ISA or ATTUNE_THREADS is found here, when nothing has begun
    start_stream();
    open_promises(env);
    for (const Export& entry : attune::exports)
      if (napi_set_named_property(env, exports, entry.name, make_function(env, &entry)) != napi_ok) return nullptr;
    return exports;
  } catch (const std::exception& error) {
    napi_throw_error(env, "ENGINE", error.what());
  } catch (const PendingException&) {
    napi_throw_error(env, "ENGINE", "Node-API failed while the engine was loaded");
  }
  return nullptr;
}
