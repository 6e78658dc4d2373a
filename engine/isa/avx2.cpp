#define ATTUNE_TIER avx2
#include "tier.inl"
