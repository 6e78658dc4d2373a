#define ATTUNE_TIER amx
#include "tier.inl"
