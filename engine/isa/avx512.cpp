#define ATTUNE_TIER avx512
#include "tier.inl"
