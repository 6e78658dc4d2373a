// f32 to the blocks of GGUF files.
#pragma once
#include <stdint.h>

namespace attune {

/// Writes `count` numbers, whole blocks, as blocks of `type`: Q8_0, Q4_0, Q4_1, Q5_0, Q4_K or Q6_K. One thread; callers split the work.
void quantize_gguf(int type, const float* x, void* y, int64_t count);

} // namespace attune
