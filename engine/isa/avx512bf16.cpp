#define ATTUNE_TIER avx512bf16
#include "tier.inl"
