#define ATTUNE_TIER portable
#include "tier.inl"
